"""Run directories: whose one is, and how a run goes on in its own.

Nothing here imports torch: it is done before Hydra composes the job.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from se_lightning.cli.run.result import RESULT
from se_lightning.ranks import CHILD, is_launched

__all__ = ["ABOUT_MULTIRUNS", "claim", "quoted", "refuse_used", "take_up", "unquoted"]

# Hydra's overrides that are about a multirun, or about where a job runs, and not about the job.
ABOUT_MULTIRUNS = (
    "hydra.mode",
    "hydra.sweep",
    "hydra.run",
    "hydra.job.num",
    "hydra.launcher",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.output_subdir",
)
# What a run that goes on may not change: it would be another run.
_FIXED = ("model", "data", "optimizer", "lr_scheduler", "seed", "task", "experiment", "ckpt_path")
_FREE = ("data.root", "data.num_workers", "data.eval_batch_size")
_LOCK = ".lock"

_claimed: dict[Path, TextIO] = {}


def claim(folder: Path, key: str = "hydra.run.dir") -> None:
    """Take a directory for this process, for as long as it lives.

    Args:
        folder: which one.
        key: of the command line, by which another is chosen.

    Raises:
        ValueError: if another process has it.
    """
    folder = folder.absolute()
    if folder in _claimed:
        return
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        file = (folder / _LOCK).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whose = file.read().strip() or "just beginning"
            file.close()
            raise ValueError(
                f"{folder} is in use by another run ({whose}): wait for its end, or choose another "
                f"directory with {key}=DIR."
            ) from None
        except OSError:
            break  # a file system without locks: nobody can tell
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == (folder / _LOCK).stat().st_ino:
                break
        file.close()  # of a run that has just ended, and taken its file away
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _claimed[folder] = file
    atexit.register(_release, folder)


def _release(folder: Path) -> None:
    (folder / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds a run
        folder.rmdir()


def refuse_used(run_dir: Path) -> None:
    """Refuse a directory that holds a run already.

    Raises:
        ValueError: naming it.
    """
    if (run_dir / RESULT).exists() or (run_dir / "checkpoints").exists():
        raise ValueError(
            f"{run_dir} already holds a run: choose another directory, or move that one away. "
            f"If it was cut, resume={run_dir} goes on with it."
        )


def take_up(argv: list[str]) -> None:
    """Rewrite ``resume=RUN_DIR`` to the command that began the run there, in place.

    A job that SLURM has started anew (``scontrol requeue``, a failed node) goes on by itself.

    Raises:
        ValueError: if there is no run to go on with, or a different one is asked for.
    """
    if is_launched() or "--multirun" in argv or "-m" in argv:
        return  # Lightning has copied the command of rank 0; multiruns have jobs.resume
    given = [a for a in argv[1:] if a.lstrip("+").partition("=")[0] == "resume"]
    value = unquoted(given[-1].partition("=")[2]) if given else ""
    if value not in ("", "null"):
        argv[1:] = _command(Path(value).absolute(), [a for a in argv[1:] if a not in given])
    elif (restarted := _slurm_directory(argv)) is not None:
        argv[1:] = _command(restarted, [])  # the command is that of the run


def _command(run_dir: Path, more: list[str]) -> list[str]:
    """Return the arguments by which a run was begun, with those on top that it may change."""
    if not run_dir.is_dir():
        raise ValueError(f"`resume` (={run_dir}) is not a directory; runs are in outputs/.")
    if (run_dir / "multirun.yaml").exists():
        raise ValueError(f"{run_dir} is a multirun: `-m jobs.resume={run_dir}` goes on with it.")
    try:
        begun = OmegaConf.load(run_dir / ".hydra" / "hydra.yaml").hydra
        # As they were typed: what they refer to is not in this file alone.
        given: Any = OmegaConf.to_container(begun.overrides, resolve=False)
        overrides = [o for o in given["task"] if not o.startswith("jobs.")]
        status = (_result(run_dir) or {}).get("status")
    except FileNotFoundError as error:
        raise ValueError(
            f"{run_dir} is no run's directory: {error.filename} is missing."
        ) from error
    except Exception as error:  # whatever a damaged file makes of its reader
        raise ValueError(
            f"{run_dir} can't be resumed: its .hydra/ or {RESULT} is damaged."
        ) from error
    _refuse_changes([a for a in more if not a.startswith("hydra.job.num=")])
    changes = [a for a in more if not a.startswith("hydra")]
    if status == "completed" and not changes:
        raise ValueError(f"{run_dir} is complete; trainer.max_epochs=N makes it longer.")
    inherited = [o for o in given["hydra"] if not o.lstrip("+~").startswith(ABOUT_MULTIRUNS)]
    number = OmegaConf.to_container(begun.job).get("num", "???")  # type: ignore[union-attr]
    if number != "???" and not any(a.startswith("hydra.job.num=") for a in more):
        inherited.append(f"hydra.job.num={number}")
    if Path(str(begun.runtime.get("cwd"))).is_dir():
        os.chdir(begun.runtime.cwd)  # for the paths that it was given
    return [
        *("--config-name", str(begun.job.config_name)),
        *(
            part
            for source in begun.runtime.config_sources
            if source.provider == "command-line"
            for part in ("--config-dir", source.path)
        ),
        *overrides,
        *inherited,
        *more,
        f"resume={quoted(run_dir)}",
        f"hydra.run.dir={quoted(run_dir)}",
        "hydra.output_subdir=null",  # .hydra stays as the run began
    ]


def quoted(path: Path) -> str:
    """Return an absolute path as Hydra's grammar takes any."""
    return '"' + str(path.absolute()).replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquoted(value: str) -> str:
    """Return a value as Hydra reads it: without the quotes around it."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1].replace(f"\\{value[0]}", value[0]).replace("\\\\", "\\")
    return value


def _refuse_changes(more: list[str]) -> None:
    for argument in more:
        key = argument.lstrip("+~").partition("=")[0]
        group = key.partition(".")[0].partition("/")[0].partition("@")[0]
        if argument.startswith("-") or key in ("hydra.run.dir", "hydra.output_subdir"):
            raise ValueError(f"`resume` takes the command from the run; leave out {argument}.")
        if group in _FIXED and key not in _FREE:
            raise ValueError(
                f"`resume` goes on with the run as it was begun; leave out {argument}. A new run "
                "begins with trained weights by model.weights=CHECKPOINT."
            )


def _result(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def _slurm_directory(argv: list[str]) -> Path | None:
    """Name a batch job's run directory after the job and the command; return it to go on in it.

    So the job finds its run when SLURM starts it anew. The same command a second time in one job
    has a time stamp, as elsewhere.
    """
    if (
        "SLURM_JOB_ID" not in os.environ
        or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        or CHILD in os.environ
        or any(a.startswith(("-", "hydra.run.dir=", "hydra.mode=")) for a in argv[1:])
    ):
        return None
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    command = hashlib.sha256("\0".join(argv[1:]).encode()).hexdigest()[:8]
    folder = Path("outputs", f"slurm-{job}-{command}").absolute()
    if not (folder / ".hydra" / "hydra.yaml").exists():
        argv.append(f"hydra.run.dir={quoted(folder)}")
    elif os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        if (_result(folder) or {}).get("status") == "completed":
            print(f"{folder} is complete.")
            sys.exit(0)
        return folder
    return None
