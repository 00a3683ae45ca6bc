"""result.json: what a run leaves for programs to read."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

__all__ = ["RESULT", "identity", "write_failure", "write_result", "write_whole"]

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


def identity() -> dict[str, Any]:
    """Say which job of Hydra's this is: its number in a multirun, and its overrides."""
    hydra = HydraConfig.get()
    number = None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num
    return {"job": number, "overrides": list(hydra.overrides.task)}


def write_result(run_dir: Path, result: dict[str, Any], *, keep: bool = False) -> None:
    """Write result.json; ``keep`` leaves one that is there."""
    write_whole(run_dir / RESULT, json.dumps(result, indent=2) + "\n", keep=keep)


def write_failure(run_dir: Path, error: str) -> None:
    """Write the result.json of a failed run; the first of several ranks tells the cause."""
    failure = {"status": "failed", "error": error, **identity()}
    with contextlib.suppress(OSError):  # a full disk must not hide what came before
        write_result(run_dir, failure, keep=True)
