"""result.json: what a run leaves for programs to read."""

import contextlib
import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.atomic import write_text
from se_lightning.ranks import is_further_rank, rank

__all__ = [
    "RESULT",
    "identity",
    "task_overrides",
    "write_failure",
    "write_result",
]

RESULT = "result.json"


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
    write_text(run_dir / RESULT, json.dumps(result, indent=2) + "\n", keep=keep)


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
