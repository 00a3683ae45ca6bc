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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from se_lightning import points, ranks, sweeps
from se_lightning.errors import explain, is_mistake
from se_lightning.results import RESULT, write_failure

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
VALUES = ("seed", "ckpt_path", "jobs")


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit code 1."""
    ranks.die_with_parent()
    _accept_plus(sys.argv)
    ranks.leave_writing_to_rank_0(sys.argv)
    wants_stack = os.environ.get(FULL_ERROR) == "1"
    try:
        _refuse_missing_configs()
        _refuse_used_directories(sys.argv)
        points.refuse_equal_networks(sys.argv)
        try:
            with _hydra_raises("1"):
                _app()
        finally:
            sweeps.tell_summary()
    except KeyboardInterrupt:
        print("se_lightning: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if wants_stack or not is_mistake(error):
            sys.excepthook(type(error), error, error.__traceback__)
        print(f"se_lightning: error: {explain(error)}{_suggestion(error)}", file=sys.stderr)
        sys.exit(1)


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
            return sweeps.run_job()
        if not ranks.is_further_rank():
            _refuse_used(run_dir)
        try:
            _refuse_unknown_keys(cfg)
            from se_lightning.train import train

            return train(cfg)
        except BaseException as error:
            write_failure(run_dir, explain(error))
            if is_mistake(error) and not several and ranks.CHILD not in os.environ:
                _discard_unused(run_dir)
            raise
        finally:
            if several and ranks.external_rank() == 0:
                sweeps.write_summary(Path(HydraConfig.get().sweep.dir))


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
    for argument in argv:
        key, _, value = argument.partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir"):
            folder = Path(value.strip("\"'"))
            for place in (folder, *(job.parent for job in folder.glob(f"*/{RESULT}"))):
                _refuse_used(place)


def _refuse_used(run_dir: Path) -> None:
    if (run_dir / RESULT).exists() or (run_dir / "checkpoints").exists():
        raise ValueError(
            f"{run_dir} already holds a run: choose another directory, or move that one away."
        )


def _accept_plus(argv: list[str]) -> None:
    """Rewrite ``+model=x`` to ``model=x``, in place: Lightning's further ranks run argv again."""
    for position, argument in enumerate(argv):
        if argument.startswith("+") and argument[1:].partition("=")[0] in GROUPS:
            argv[position] = argument[1:]


def _refuse_unknown_keys(cfg: DictConfig) -> None:
    """Refuse keys that nobody would read: Hydra lets ``+trainer.devicez=3`` pass.

    The shipped configs name every parameter, so that a key which only a ``+`` brought into a node
    is a typing error; unless the node's ``_target_`` is another one now.
    """
    composed = HydraConfig.get()
    loader = GlobalHydra.instance().config_loader()
    choices = [
        override
        for override in composed.overrides.task
        if loader.get_group_options(override.lstrip("+~").partition("=")[0])
    ]
    shipped = loader.load_configuration(composed.job.config_name, choices, run_mode=RunMode.RUN)
    _refuse_others(cfg, (*GROUPS, *VALUES))
    for group in {*GROUPS, "jobs"} - set(OPEN):
        node = cfg.get(group)
        if isinstance(node, DictConfig) and node.get("_target_") == shipped[group].get("_target_"):
            # Listed: `in` of a DictConfig denies keys that are still missing a value.
            _refuse_others(node, list(shipped[group]), f"{group}.")


def _suggestion(error: Exception) -> str:
    """Say how to mend it, where the message itself is the work of others."""
    if isinstance(error, OSError) and error.filename:
        within = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
        began = Path(__file__).with_name("train.py") in within
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


def _discard_unused(run_dir: Path) -> None:
    """Remove what Hydra and we put into the directory of a run that never began."""
    if any((run_dir / began).exists() for began in ("checkpoints", "metrics.csv", "wandb")):
        return
    logging.shutdown()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for made in (RESULT, "hparams.yaml", f"{HydraConfig.get().job.name}.log"):
        (run_dir / made).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something of the user's
        run_dir.rmdir()


def _refuse_others(node: DictConfig, known: Collection[Any], prefix: str = "") -> None:
    for key in map(str, node):
        if key not in known:
            near = difflib.get_close_matches(key, map(str, known), n=1)
            hint = f" Did you mean `{prefix}{near[0]}`?" if near else ""
            raise ValueError(f"There is no `{prefix}{key}` in the config; nothing reads it.{hint}")


if __name__ == "__main__":
    main()
