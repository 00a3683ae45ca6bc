"""Resuming a multirun: the same command again, for the jobs that have not completed."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from se_lightning.cli.command import Command, quoted
from se_lightning.cli.console import say
from se_lightning.cli.run.folder import MULTIRUN, RunFolder, jobs_in
from se_lightning.cli.run.resume import epochs_done
from se_lightning.cli.sweep.pool import Job
from se_lightning.cli.sweep.summary import SUMMARY, TABLE

__all__ = ["discard_damaged", "refuse_used", "remaining", "resumed"]

# Keys that may change when a multirun is resumed.
_FREE = ("jobs.parallel", "jobs.fail_fast", "jobs.trials", "trust")


def resumed(command: Command) -> Command:
    """Expand ``jobs.resume=DIR`` to the command of that multirun; return others unchanged.

    Raises:
        ValueError: If DIR holds no multirun, or the command would change that multirun.
    """
    value = command.value("jobs.resume")
    if value is None:
        return command
    folder = Path(value)
    changes = command.without("jobs.resume")
    refused = [flag for flag in command.flags if flag not in ("-m", "--multirun")]
    refused += changes.without(*_FREE).overrides
    if refused:
        raise ValueError(
            f"jobs.resume={folder} continues a multirun with its own settings; leave out "
            f"{refused[0]}."
        )
    from se_lightning.cli.trust import carried_trust  # only resuming needs it

    started, cwd = _recorded(folder)
    place = f"hydra.sweep.dir={quoted(folder)}"  # before the change of directory
    if cwd.is_dir():
        os.chdir(cwd)  # for relative paths in the overrides
    trust = carried_trust(started, changes)
    command = Command(("-m", *started.flags), started.overrides)
    return command.with_(*changes.without("trust").overrides, trust, place)


def _recorded(folder: Path) -> tuple[Command, Path]:
    """Return the command that started a multirun, without ``-m``, and its working directory."""
    path = folder / MULTIRUN
    if not path.is_file():
        raise ValueError(
            f"`jobs.resume` (={folder}) must be the folder of a multirun, but it has no {MULTIRUN}."
        )
    try:
        hydra = OmegaConf.load(path).hydra
        started = Command.recorded(hydra).without("jobs.resume", "hydra.mode")
        if not hydra.runtime.choices:  # written after all of the above
            raise ValueError("cut short")
        return started, Path(hydra.runtime.cwd)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Make it readable.") from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} is damaged, so the multirun cannot be continued. Restore the file, or "
            f"continue each interrupted job with resume={folder}/JOB."
        ) from error


def discard_damaged(sweep_dir: Path) -> None:
    """Remove the damaged results of a multirun, so that their jobs are run again.

    Raises:
        ValueError: If a result cannot be read.
    """
    for job in jobs_in(sweep_dir):
        try:
            job.result(strict=True)
        except ValueError as error:
            say(f"{error} The job is run again.")
            job.discard_result()
        except OSError as error:
            raise ValueError(
                f"{error.filename} cannot be read ({error.strerror}). Make it readable, or remove "
                "it to run its job again."
            ) from error


def remaining(job: Job) -> Job | None:
    """Return the remaining part of a job: none, the rest after its last checkpoint, or all."""
    if job.folder.result().get("status") == "completed":
        return None
    job.folder.discard_result()
    # Without its last.ckpt, a job that has completed an epoch ends with a message about that.
    if job.folder.last_checkpoint.exists() or epochs_done(job.folder, job.folder.checkpoints):
        path = quoted(job.folder.path)
        trusts = [word for word in job.command if word.startswith("trust=")]
        rest = Command(overrides=(*trusts, f"resume={path}", f"hydra.job.num={job.number}"))
        return replace(job, command=rest.line())
    job.folder.discard_checkpoints()
    return job


def refuse_used(sweep_dir: Path) -> None:
    """Raise a ValueError if a folder holds jobs, or files of another program."""
    for job in jobs_in(sweep_dir):
        raise ValueError(
            f"{job.path} already holds a run. Choose another folder with hydra.sweep.dir=DIR, or "
            f"continue the multirun with -m jobs.resume={shlex.quote(str(sweep_dir))}."
        )
    from se_lightning.cli.sweep.study import JOURNAL

    RunFolder(sweep_dir).refuse_foreign_multirun((SUMMARY, TABLE, JOURNAL))
