"""result.json: what a run leaves for programs to read."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.ranks import is_further_rank, rank

__all__ = [
    "RESULT",
    "identity",
    "task_overrides",
    "write_failure",
    "write_result",
    "write_whole",
]

RESULT = "result.json"


def write_whole(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file in one step: a reader sees all of it or none.

    Args:
        path: where it goes.
        text: its content.
        keep: leave a file that is there already as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        if not keep:
            os.replace(temporary, path)
        elif not path.exists():
            os.link(temporary, path)
    except FileExistsError:
        return  # another rank was first
    finally:
        temporary.unlink(missing_ok=True)


def task_overrides() -> list[str]:
    """Return what the command line sets, as it was typed: a ``${...}`` in it may lead nowhere."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[return-value]


def identity() -> dict[str, Any]:
    """Say which job of Hydra's this is: its number in a multirun, and its overrides."""
    hydra = HydraConfig.get()
    number = None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num
    overrides = [o for o in task_overrides() if not o.startswith("resume=")]
    return {"job": number, "overrides": overrides}


def write_result(run_dir: Path, result: dict[str, Any], *, keep: bool = False) -> None:
    """Write result.json; ``keep`` leaves one that is there."""
    write_whole(run_dir / RESULT, json.dumps(result, indent=2) + "\n", keep=keep)


def write_failure(run_dir: Path, error: str, trace: str = "", *, status: str = "failed") -> bool:
    """Write the result.json of a failed run; the first of several ranks tells the cause.

    Args:
        run_dir: where it goes.
        error: what one reads.
        trace: the traceback of what is no user's mistake.
        status: ``"interrupted"`` if it was asked to end.

    Returns:
        Whether the cause stands there now.
    """
    failure: dict[str, Any] = {"status": status, "error": error, **identity()}
    if trace:
        failure["traceback"] = trace
    if is_further_rank():
        failure["rank"] = rank()
    with contextlib.suppress(OSError):  # a full disk must not hide what came before
        write_result(run_dir, failure, keep=True)
        return True
    return False
