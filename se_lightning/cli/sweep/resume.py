"""Multiruns that were cut: what is left to do, and how they go on in their directories."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from se_lightning.cli.run.folder import quoted, unquoted
from se_lightning.cli.run.result import RESULT
from se_lightning.cli.sweep.pool import Job, read_result

__all__ = ["left_of", "refuse_used", "restore"]

_KEY = "jobs.resume="
# What may be another when a multirun is resumed.
_ANEW = ("jobs.parallel=", "jobs.fail_fast=", "jobs.trials=")


def restore(argv: list[str]) -> bool:
    """Rewrite ``jobs.resume=DIR``, in place, to the command line of the multirun in DIR.

    Returns:
        Whether there was one to rewrite.

    Raises:
        ValueError: if DIR holds no multirun, or more is given that would change it.
    """
    given = [argument for argument in argv[1:] if argument.startswith(_KEY)]
    if not given:
        return False
    folder = Path(unquoted(given[-1].removeprefix(_KEY)))
    others = [a for a in argv[1:] if a not in (*given, "-m", "--multirun")]
    changed = [argument for argument in others if not argument.startswith(_ANEW)]
    if changed:
        raise ValueError(
            f"jobs.resume={folder} goes on with a multirun as it was; leave out {changed[0]}."
        )
    try:
        config = OmegaConf.load(folder / "multirun.yaml").hydra
        # As they were typed: what they refer to is not in this file alone.
        begun: Any = OmegaConf.to_container(config.overrides, resolve=False)
        overrides = begun["hydra"] + begun["task"]
    except (OSError, AttributeError, TypeError, KeyError):
        raise ValueError(
            f"`jobs.resume` (={folder}) must be the directory of a multirun: it has no "
            "multirun.yaml of one."
        ) from None
    replaced = (argument.partition("=")[0] + "=" for argument in others)
    dropped = ("jobs.resume=", "hydra.mode=", "hydra.sweep.dir=", *replaced)
    argv[1:] = ["-m", "--config-name", str(config.job.config_name)]
    for source in config.runtime.config_sources:
        if source.provider == "command-line":
            argv += ["--config-dir", source.path]
    argv += [override for override in overrides if not override.startswith(dropped)]
    argv += [*others, f"hydra.sweep.dir={quoted(folder)}"]
    if Path(config.runtime.cwd).is_dir():
        os.chdir(config.runtime.cwd)  # for the paths that it was given
    return True


def left_of(job: Job) -> Job | None:
    """Return what is left to do of a job: nothing, its rest from its last checkpoint, or all."""
    if read_result(job.run_dir).get("status") == "completed":
        return None
    (job.run_dir / RESULT).unlink(missing_ok=True)
    if (job.run_dir / "checkpoints" / "last.ckpt").exists():
        rest = [f"resume={quoted(job.run_dir)}", f"hydra.job.num={job.number}"]
        return replace(job, command=[sys.executable, "-m", "se_lightning", *rest])
    shutil.rmtree(job.run_dir / "checkpoints", ignore_errors=True)
    return job


def refuse_used(sweep_dir: Path) -> None:
    """Refuse a directory that holds jobs already.

    Raises:
        ValueError: naming one of them.
    """
    for job in sorted(path.parent for path in sweep_dir.glob(f"*/{RESULT}")):
        raise ValueError(
            f"{job} already holds a run: choose another directory with hydra.sweep.dir=DIR, or go "
            f"on with -m jobs.resume={sweep_dir}."
        )
