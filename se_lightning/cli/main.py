"""The command line: ``python -m se_lightning`` and ``se-lightning``.

Nothing here imports torch, so that ``--help``, ``--cfg job`` and reports of typos appear at once.
For the same reason, modules that few commands need are imported where they are used.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from se_lightning import ranks
from se_lightning.cli import process
from se_lightning.cli.command import Command, quoted
from se_lightning.cli.console import say
from se_lightning.cli.errors import Failure, RankError, is_user_error
from se_lightning.cli.null_keys import make_deletable
from se_lightning.cli.run import rank_failures
from se_lightning.cli.run.folder import RunFolder, jobs_in, temporary_folder
from se_lightning.cli.run.interrupts import ended_by_signals
from se_lightning.cli.run.paths import refuse_empty, refuse_missing_checkpoint, settle_paths
from se_lightning.cli.run.resume import resumed as resumed_run
from se_lightning.cli.schema import refuse_unknown_keys
from se_lightning.cli.sweep import sweep as sweeps
from se_lightning.cli.sweep.duplicates import refuse_equal_networks
from se_lightning.cli.sweep.multirun import Multirun
from se_lightning.cli.sweep.resume import resumed as resumed_multirun
from se_lightning.cli.sweep.summary import write_summary
from se_lightning.cli.targets import chosen_options, fit_to_targets

__all__ = ["main"]

_FULL_ERROR = "HYDRA_FULL_ERROR"

make_deletable()  # when imported, since the processes of a launcher compose configs too

_progress: Literal["composing", "preparing", "running"] = "composing"  # of the current command


def main() -> None:
    """Run the command line; a user error prints one message and exits with code 1."""
    global _progress
    _progress = "composing"
    if "--version" in sys.argv[1:]:
        from se_lightning.cli.help import version_text

        say(version_text())
        return
    process.die_with_parent()
    command = Command.parse(sys.argv[1:])
    command.install()
    try:
        if _only_tells(command):
            return
        given = command
        if not ranks.is_launched():
            refuse_empty(given)
        command = resumed_run(resumed_multirun(given)).placed()
        if ranks.external_rank():
            command = _writing_nowhere(command)
        _refuse_missing_configs()
        sweeps.refuse_missing_launchers(command)
        multirun = None if ranks.is_further_rank() else Multirun.composed(command)
        command = multirun.command if multirun else _in_home(command)
        if not given.value("jobs.resume"):
            _refuse_used_folders(command, several=multirun is not None)
        refuse_equal_networks(multirun)
        command.install()
        _start(multirun, resumes=given.value("jobs.resume") is not None)
    except ranks.Interrupted as end:
        if not ranks.is_launched():  # rank 0 reports it
            say(f"se_lightning: {end.message}", error=True)
        raise
    except KeyboardInterrupt:
        say("se_lightning: interrupted", error=True)
        sys.exit(130)
    except Exception as error:
        from se_lightning.cli.hints import hint, reworded

        shown = reworded(error) if _progress == "composing" else error
        advice = "" if _progress == "running" else hint(error, command)
        elsewhere = isinstance(error, RankError)
        rank_failures.report(Failure.of(shown), hint=advice, first_elsewhere=elsewhere)
        rank_failures.hurry()
        sys.exit(1)
    rank_failures.disconnect()


def _only_tells(command: Command) -> bool:
    """Print the help or the version if the command asks for it."""
    options = command.options
    if options.help or options.hydra_help or options.cfg or options.info:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it, without a stack trace
    if options.help:
        from se_lightning.cli.help import help_text

        say(help_text(command))
    return bool(options.help)


def _start(multirun: Multirun | None, *, resumes: bool) -> None:
    with sweeps.lead(multirun, resumed=resumes) as sweep:
        if sweep is not None and sweep.searches:
            from se_lightning.cli.sweep.search import search

            search(sweep)
        else:
            with _hydra_raises("1"):
                _run_app()


@contextlib.contextmanager
def _hydra_raises(value: str | None) -> Iterator[None]:
    """Set the variable that makes Hydra raise its errors instead of printing them itself."""
    before = os.environ.pop(_FULL_ERROR, None)
    if value is not None:
        os.environ[_FULL_ERROR] = value
    try:
        yield
    finally:
        os.environ.pop(_FULL_ERROR, None)
        if before is not None:
            os.environ[_FULL_ERROR] = before


_users_full_error = os.environ.get(_FULL_ERROR)


def _run_app() -> None:
    failed = None
    try:
        _app()
    except _Ended as end:
        failed = end.error
    if failed is not None:
        raise failed  # here, so that it keeps its cause


class _Ended(BaseException):
    """A failed run, on its way through Hydra; not an Exception, which Hydra would print as well."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@hydra.main(version_base="1.3", config_path="pkg://se_lightning.conf", config_name="train")
def _app(cfg: DictConfig) -> float | None:
    """Run Hydra's current job: in a separate process if there are several."""
    global _progress
    _progress = "preparing"
    with open_dict(cfg):
        for key in ("ckpt_path", "resume", "trust"):
            cfg.setdefault(key, None)  # a deleted key is a null one
    with _hydra_raises(_users_full_error):  # for the processes that the job starts
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        if several and ranks.external_rank() is None:
            return sweeps.run_job(cfg)
        try:
            return _run(cfg)
        except Exception as error:
            if several:
                raise
            raise _Ended(error) from error
        finally:
            if several and ranks.external_rank() == 0:
                hydra_node = HydraConfig.get()
                write_summary(Path(hydra_node.runtime.cwd, hydra_node.sweep.dir))


def _run(cfg: DictConfig) -> float | None:
    """Run one job in this process, and record a failure in its folder."""
    global _progress
    folder = RunFolder(HydraConfig.get().runtime.output_dir)
    if not ranks.is_further_rank():
        folder.claim(composed=True)
        if cfg.resume is None:
            folder.refuse_used()
        else:
            folder.discard_result()
    try:
        with ended_by_signals(folder):
            from se_lightning.cli.trust import refuse_untrusted

            refuse_untrusted(cfg)
            with open_dict(cfg):  # a primary config of the user's may lack it
                cfg.output_dir = str(folder.path)
            options = chosen_options()
            refuse_unknown_keys(cfg, options)
            settle_paths(cfg)
            refuse_missing_checkpoint(cfg)
            fit_to_targets(cfg, options)
            from se_lightning.cli.run.run import run

            rank_failures.watch_ranks()
            _progress = "running"
            return run(cfg)
    except ranks.Interrupted as end:
        if not ranks.is_further_rank():
            rank_failures.record(folder, Failure.of(end))
        raise
    except BaseException as error:
        _record_failure(error, rank_failures.blame(error, folder), cfg, folder)
        raise


def _record_failure(
    error: BaseException, first: BaseException, cfg: DictConfig, folder: RunFolder
) -> None:
    """Record the first error, possibly of another rank, or restart as ``on_oom`` requests."""
    from se_lightning.cli.run import out_of_memory

    failure = Failure.of(first)
    out_of_memory.restart_smaller(failure, cfg, folder, Command.parse(sys.argv[1:]))
    recorded = rank_failures.record(folder, failure)
    if recorded and ranks.is_launched() and isinstance(error, Exception):
        rank_failures.vanish()  # silently: rank 0 reports it
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    alone = not several and ranks.CHILD not in os.environ and not ranks.is_further_rank()
    began = cfg.resume is not None or Failure.of(error).kind == "out_of_memory"
    if alone and is_user_error(error) and not began:
        logging.shutdown()  # an open log would keep the folder on NFS
        folder.discard_unused(HydraConfig.get().job.name)
    if first is not error:
        raise first from None


def _refuse_missing_configs() -> None:
    if importlib.util.find_spec("se_lightning.conf") is None:
        raise FileNotFoundError(
            "The configs (se_lightning.conf) are missing from this installation; run "
            "`pip install -e .` in a checkout, or reinstall the package."
        )


def _refuse_used_folders(command: Command, *, several: bool) -> None:
    """Refuse a folder that holds a run, before Hydra writes into it."""
    if ranks.is_further_rank() or ranks.CHILD in os.environ:
        return
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        path = command.value(key)
        if path is None or "${now:" in path:  # a new folder
            continue
        if "${" in path:
            path = str(OmegaConf.select(command.config, key))
        folder = RunFolder(path)
        if not command.value("resume"):
            for used in (folder, *jobs_in(folder.path)):
                used.refuse_used()
        if key == "hydra.run.dir" and not several:
            if not command.value("resume"):
                folder.refuse_foreign(command.value("hydra.job.name") or "se_lightning")
            folder.claim()


def _in_home(command: Command) -> Command:
    """Expand ``~`` in a config's ``hydra.run.dir``, which Hydra takes for the name of a folder."""
    if command.value("hydra.run.dir") is not None:
        return command
    with contextlib.suppress(HydraException, OmegaConfBaseException):  # Hydra reports it
        folder = str(command.config.hydra.run.dir)
        if folder.startswith("~"):
            return command.with_(f"hydra.run.dir={quoted(Path(folder).expanduser())}")
    return command


def _writing_nowhere(command: Command) -> Command:
    """Give a further rank of torchrun or srun a temporary folder.

    Otherwise each rank would compose its own timestamp and leave a run folder.
    """
    folder = quoted(temporary_folder())
    run, sweep = (f"hydra.{kind}.dir={folder}" for kind in ("run", "sweep"))
    return command.with_(run, sweep, "hydra.output_subdir=null")
