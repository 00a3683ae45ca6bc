"""The keyword arguments that the family modules pass on: the gates' and the training's."""

from collections.abc import Mapping
from typing import Any

from se_lightning.models.layers.options import GateOptions, ResidualGateOptions, StagedGateOptions
from se_lightning.modules.classifier import TrainingOptions

__all__ = ["Options", "ResidualOptions", "StagedOptions", "split"]


class Options(GateOptions, TrainingOptions, total=False):
    """Those of every family."""


class StagedOptions(StagedGateOptions, TrainingOptions, total=False):
    """Those of a family with stages."""


class ResidualOptions(ResidualGateOptions, TrainingOptions, total=False):
    """Those of a residual family."""


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the training's options, and the others, which the network checks."""
    known = TrainingOptions.__annotations__
    training = {name: value for name, value in options.items() if name in known}
    return training, {name: value for name, value in options.items() if name not in known}
