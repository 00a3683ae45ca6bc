"""``result.json``: the result of a run, for programs to read."""

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.errors import Kind

__all__ = ["RunResult", "from_json", "identity"]


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
    tags: list[str]
    parameters: int
    gates: int
    hidden_widths: dict[str, int]  # by module path
    world_size: int
    batch_size: int | None  # samples per device
    accumulate_grad_batches: int
    metrics: Mapping[str, float | None]  # of the last epoch and of the test; None if not finite
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
        "overrides": Command.recorded(hydra).without("resume", "trust").task_overrides,
    }


def from_json(text: str | bytes) -> RunResult:
    """Read the text of ``result.json``; unknown keys are kept.

    Raises:
        ValueError: If the text is not JSON, or a value has the wrong type.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    for key, kind in get_type_hints(RunResult).items():
        if key in found and not _is_a(found[key], kind):
            raise ValueError(f"{key} has the wrong type")
    return cast(RunResult, found)


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether a value has the type of an annotation of :class:`RunResult`."""
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_a(value, each) for each in of)
    if origin is list:
        return isinstance(value, list) and all(_is_a(each, of[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_is_a(each, of[1]) for each in value.values())
    if origin is Literal:
        return isinstance(value, str)  # other versions may have other kinds
    return isinstance(value, (int, float) if kind is float else kind)
