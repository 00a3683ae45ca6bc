"""The command line: ``python -m se_lightning`` and ``se-lightning``.

Nothing here imports torch, so that ``--help``, ``--cfg job`` and a typing error answer at once.
"""

import contextlib
import difflib
import importlib.util
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from se_lightning import ranks
from se_lightning.cli.errors import explain, is_mistake
from se_lightning.cli.run import folder as directories
from se_lightning.cli.run import out_of_memory as memory
from se_lightning.cli.run import rank_failures as failures
from se_lightning.cli.run.result import RESULT, task_overrides, write_failure
from se_lightning.cli.sweep import multirun as points
from se_lightning.cli.sweep import resume as unfinished
from se_lightning.cli.sweep import search, summary
from se_lightning.cli.sweep import sweep as sweeps

__all__ = ["main"]

FULL_ERROR = "HYDRA_FULL_ERROR"
# Groups of the defaults list, for which Hydra admits `group=x` only.
GROUPS = (
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "callbacks",
    "logger",
    "task",
    "experiment",
)
# Of these, those that take entries of the user's own.
OPEN = ("callbacks", "logger", "experiment")
# The other top-level keys.
VALUES = ("seed", "ckpt_path", "resume", "checkpoint", "on_nonfinite", "on_oom", "jobs")


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit code 1."""
    ranks.die_with_parent()
    _accept_plus(sys.argv)
    _flags_first(sys.argv)
    try:
        resumed = unfinished.restore(sys.argv)
        directories.take_up(sys.argv)
        ranks.leave_writing_to_rank_0(sys.argv)
        _refuse_missing_configs()
        if not resumed:
            _refuse_used_directories(sys.argv)
        sweeps.refuse_missing_launchers(sys.argv)
        multirun = None if ranks.is_further_rank() else points.composed(sys.argv)
        points.refuse_equal_networks(multirun)
        with sweeps.lead(multirun, resumed=resumed) as sweep:
            if sweep is not None and sweep.searches:
                search.search(sweep)
            else:
                with _hydra_raises("1"):
                    _app()
    except ranks.Interrupted as end:
        print(f"se_lightning: {end.message}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("se_lightning: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        failures.tell(_composing(error), _suggestion(error))
        failures.hurry()
        sys.exit(1)
    failures.disconnect()


@contextlib.contextmanager
def _hydra_raises(value: str | None) -> Iterator[None]:
    """Set the variable by which Hydra raises its errors instead of wording them itself."""
    before = os.environ.pop(FULL_ERROR, None)
    if value is not None:
        os.environ[FULL_ERROR] = value
    try:
        yield
    finally:
        os.environ.pop(FULL_ERROR, None)
        if before is not None:
            os.environ[FULL_ERROR] = before


_users_full_error = os.environ.get(FULL_ERROR)


@hydra.main(version_base="1.3", config_path="pkg://se_lightning.conf", config_name="train")
def _app(cfg: DictConfig) -> float | None:
    """Run one job of Hydra's: in a process of its own where there are several."""
    with _hydra_raises(_users_full_error):  # for the processes that the job starts
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        if several and ranks.external_rank() is None:
            return sweeps.run_job(cfg)
        if not ranks.is_further_rank():
            directories.claim(run_dir)
            if cfg.resume is None:
                directories.refuse_used(run_dir)
            else:
                (run_dir / RESULT).unlink(missing_ok=True)  # of how it ended before
        try:
            _refuse_unknown_keys(cfg)
            from se_lightning.cli.run.run import train

            failures.watch_ranks()
            return train(cfg)
        except ranks.Interrupted as end:
            if not ranks.is_further_rank():
                write_failure(run_dir, end.message, status="interrupted")
            raise
        except BaseException as error:
            first = failures.blame(error, run_dir)
            memory.begin_anew(first, cfg, run_dir)
            told = write_failure(run_dir, explain(first), failures.stack(first))
            if told and ranks.is_launched() and isinstance(error, Exception):
                failures.vanish()  # without a word: rank 0 tells
            alone = not several and ranks.CHILD not in os.environ and not ranks.is_further_rank()
            began = cfg.resume is not None or isinstance(error, memory.BatchTooLargeError)
            if alone and is_mistake(error) and not began:
                _discard_unused(run_dir)
            if first is not error:
                raise first from None
            raise
        finally:
            if several and ranks.external_rank() == 0:
                summary.write_summary(Path(HydraConfig.get().sweep.dir))


def _refuse_missing_configs() -> None:
    if importlib.util.find_spec("se_lightning.conf") is None:
        raise FileNotFoundError(
            "The configs (se_lightning.conf) are missing from this installation; run "
            "`pip install -e .` in a checkout, or reinstall the package."
        )


def _refuse_used_directories(argv: list[str]) -> None:
    """Refuse, before Hydra writes into it, a directory that was named and holds a run already."""
    if ranks.is_further_rank() or ranks.CHILD in os.environ:
        return
    resumed = any(argument.startswith("resume=") for argument in argv)
    for argument in argv:
        key, _, value = argument.partition("=")
        folder = Path(directories.unquoted(value))
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not resumed:
            for place in (folder, *(job.parent for job in folder.glob(f"*/{RESULT}"))):
                directories.refuse_used(place)
        if key == "hydra.run.dir" and "${" not in value:
            directories.claim(folder)


def _accept_plus(argv: list[str]) -> None:
    """Rewrite ``+model=x`` to ``model=x``, in place: Lightning's further ranks run argv again."""
    for position, argument in enumerate(argv):
        if argument.startswith("+") and argument[1:].partition("=")[0] in GROUPS:
            argv[position] = argument[1:]


def _flags_first(argv: list[str]) -> None:
    """Put the overrides last, in place: who runs the command again adds more of them at the end."""
    overrides = get_args_parser().parse_intermixed_args(argv[1:]).overrides
    flags = list(argv)
    for override in reversed(overrides):
        position = len(flags) - 1 - flags[::-1].index(override)
        del flags[position]
    argv[:] = flags + overrides


def _refuse_unknown_keys(cfg: DictConfig) -> None:
    """Refuse keys that nobody would read: Hydra lets ``+trainer.devicez=3`` pass.

    The shipped configs name every parameter, so that a key which only a ``+`` brought into a node
    is a typing error; unless the node's ``_target_`` is another one now.
    """
    composed = HydraConfig.get()
    loader = GlobalHydra.instance().config_loader()
    choices = [
        override
        for override in task_overrides()
        if loader.get_group_options(override.lstrip("+~").partition("=")[0])
    ]
    shipped = loader.load_configuration(composed.job.config_name, choices, run_mode=RunMode.RUN)
    _refuse_others(cfg, (*GROUPS, *VALUES))
    for group in {*GROUPS, "checkpoint", "jobs"} - set(OPEN):
        node = cfg.get(group)
        if isinstance(node, DictConfig) and node.get("_target_") == shipped[group].get("_target_"):
            # Listed: `in` of a DictConfig denies keys that are still missing a value.
            _refuse_others(node, list(shipped[group]), f"{group}.")


def _composing(error: Exception) -> Exception:
    """Return the mistake behind Python's lost patience with a config, or else the error itself."""
    within = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if _app.__name__ in within or not isinstance(error, RecursionError | TypeError):
        return error
    if isinstance(error, TypeError):
        return ValueError(f"Hydra can't make a config of these arguments: {error}")
    return ValueError(
        "A config includes itself, or is nested without end: look at its `defaults` and its ${...}."
    )


def _suggestion(error: Exception) -> str:
    """Say how to mend it, where the message itself is the work of others."""
    if isinstance(error, OSError) and error.filename:
        within = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
        began = Path(__file__).with_name("run") / "run.py" in within
        return "" if began else "\nRuns are written there: choose a folder with hydra.run.dir=DIR."
    missing = re.match(r"Could not override '([^'@]+)'", str(error))
    return _nearest_key(missing[1]) if missing else ""


def _nearest_key(missing: str) -> str:
    """Offer the nearest key of the chosen options' configs, or else name those of its group."""
    choices = [a for a in sys.argv if a.partition("=")[0] in GROUPS and "," not in a]
    with hydra.initialize_config_module("se_lightning.conf", version_base="1.3"):
        try:
            composed = hydra.compose("train", choices)
        except HydraException:
            return ""  # of a config folder of the user's own
    group, _, key = missing.rpartition(".")
    node = composed if not group else OmegaConf.select(composed, group)
    keys = map(str, node) if isinstance(node, DictConfig) else ()
    known = [name for name in keys if not name.startswith("_")]
    prefix = f"{group}." if group else ""
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"\nDid you mean `{prefix}{near[0]}`?"
    return f"\n`{group}` has: {', '.join(known)}." if known and group else ""


# What shows that a run has begun.
_BEGAN = ("checkpoints", "metrics.csv", "nonfinite.json", "wandb")


def _discard_unused(run_dir: Path) -> None:
    """Remove what Hydra and we put into the directory of a run that never began."""
    if any((run_dir / began).exists() for began in _BEGAN):
        return
    logging.shutdown()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for made in (RESULT, "hparams.yaml", ".lock", f"{HydraConfig.get().job.name}.log"):
        (run_dir / made).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something of the user's
        run_dir.rmdir()


def _refuse_others(node: DictConfig, known: Collection[Any], prefix: str = "") -> None:
    for key in map(str, node):
        if key not in known:
            near = difflib.get_close_matches(key, map(str, known), n=1)
            hint = f" Did you mean `{prefix}{near[0]}`?" if near else ""
            raise ValueError(f"There is no `{prefix}{key}` in the config; nothing reads it.{hint}")
