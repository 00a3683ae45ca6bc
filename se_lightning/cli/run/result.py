"""``result.json``: the result of a run, for programs to read."""

from typing import Any, TypedDict

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.errors import Kind

__all__ = ["RunResult", "identity"]


class RunResult(TypedDict, total=False):
    """The keys of ``result.json``; a task or a failure writes those that apply."""

    status: str  # completed, failed or interrupted
    job: int | None  # number in the multirun; None outside of one
    overrides: list[str]
    error: str  # what went wrong, for people
    kind: Kind  # the same, for programs
    details: dict[str, Any]  # data of the failure, e.g. the batch size that was too large
    traceback: str  # of a failure that is not a user error
    rank: int  # the rank that failed first; absent for rank 0
    task: str
    model: str  # the option, or the class rebuilt from a checkpoint
    data: str  # the same
    seed: int
    parameters: int
    gates: int
    hidden_widths: dict[str, int]  # by module path
    world_size: int
    batch_size: int | None  # samples per device
    accumulate_grad_batches: int
    metrics: dict[str, float]  # of the last epoch and of the test
    epochs: int
    steps: int  # of the optimizer
    checkpoint: str | None  # the best one, relative to the run directory if it is inside
    score: float | None  # of the best checkpoint, which a search optimizes
    picture: str | None  # likewise
    wall_time_s: float
    versions: dict[str, str]


def identity() -> RunResult:
    """Return the number of Hydra's current job in its multirun, and its overrides."""
    hydra = HydraConfig.get()
    number = None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num
    return {
        "job": number,
        "overrides": Command.recorded(hydra).without("resume").task_overrides,
    }
