"""The gates' options, which all blocks of a network share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from torch import nn

from se_lightning.arguments import boolean, one_of
from se_lightning.models.layers.gates import (
    ACTIVATIONS,
    MERGES,
    SQUEEZES,
    ConcurrentExcitation,
    SpatialExcitation,
    SqueezeExcitation,
    hidden_width,
)

__all__ = [
    "PLACEMENTS",
    "Excitation",
    "GateOptions",
    "ResidualGateOptions",
    "StagedGateOptions",
]

PLACEMENTS = ("standard", "pre", "post", "identity", "inner")


class GateOptions(TypedDict, total=False):
    """The options that every family takes; :class:`Excitation` says what they mean."""

    ratio: float | Sequence[float]
    gate: str
    squeeze: str
    gate_activation: str
    merge: str
    se_bias: bool
    divisor: int


class StagedGateOptions(GateOptions, total=False):
    """Those of a family with stages: ``ratio`` may be one per stage, ``stages`` picks some."""

    stages: Sequence[int] | None


class ResidualGateOptions(StagedGateOptions, total=False):
    """Those of a residual family, whose units have several places for a gate."""

    placement: str


@dataclass(frozen=True)
class Excitation:
    """The options of the gates of one stage, checked once and shared by its blocks.

    Args:
        ratio: reduction ratio r; the hidden width is ``max(1, C // r)``. At least 1.
        gate: ``"channel"`` for squeeze-and-excitation, ``"spatial"``, ``"concurrent"`` for both
            (Roy et al.), ``"none"`` for the plain twin.
        squeeze: over space: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of the two), or
            ``"none"``, which gives each pixel its own excitation (the paper's NoSqueeze).
        gate_activation: what makes gates of the last layer's output: ``"sigmoid"``, ``"tanh"``,
            ``"relu"``, ``"hard-sigmoid"``, ``"double-sigmoid"`` (starts at exactly 1).
        merge: of the concurrent gate's two outputs: ``"sum"``, ``"max"``, ``"product"``.
        se_bias: whether the gates' layers have biases (the released nets' do, those of the
            paper's section 6 do not).
        divisor: round the hidden width to the nearest multiple, as timm does with 8.
            1 keeps it exact.
        placement: of the gate in a residual unit (the paper's Figure 5): ``"standard"`` on the
            residual branch, ``"pre"`` before it, ``"post"`` after the sum, ``"identity"`` on the
            shortcut, ``"inner"`` right after the 3x3 convolution.

    Raises:
        ValueError: naming the option that does not fit.

    Example:
        >>> Excitation(ratio=16, squeeze="max").build(64).fc1.out_channels
        4
    """

    ratio: float = 16
    gate: str = "channel"
    squeeze: str = "avg"
    gate_activation: str = "sigmoid"
    merge: str = "sum"
    se_bias: bool = True
    divisor: int = 1
    placement: str = "standard"

    def __post_init__(self) -> None:
        hidden_width(1, self.ratio, self.divisor)  # checks both
        one_of("gate", self.gate, BUILDERS)
        one_of("squeeze", self.squeeze, SQUEEZES)
        one_of("gate_activation", self.gate_activation, ACTIVATIONS)
        one_of("merge", self.merge, MERGES)
        one_of("placement", self.placement, PLACEMENTS)
        boolean("se_bias", self.se_bias)
        if self.gate == "spatial" and self.squeeze != "avg":
            raise ValueError(
                f"`squeeze` (={self.squeeze!r}) is of channel and concurrent gates; a spatial one "
                "squeezes channels, by its convolution."
            )
        if self.gate in ("channel", "spatial") and self.merge != "sum":
            raise ValueError(f"`merge` (={self.merge!r}) is of gate='concurrent' only.")

    @classmethod
    def of_stages(
        cls,
        family: str,
        options: Mapping[str, Any],
        *,
        stages: int | None = None,
        placements: Sequence[str] = (),
        **defaults: Any,
    ) -> list["Excitation"]:
        """Check a family's gate options and return one per stage.

        Args:
            family: its name, for messages.
            options: as the user gave them.
            stages: number of stages; None for a network that has none, which then refuses
                ``stages`` and a ratio per stage, and gets a single element.
            placements: those that the family's units have; empty for a family without such.
            **defaults: the family's own, where they are not this class's.

        Raises:
            ValueError: naming the option that the family does not have, or that does not fit.

        Example:
            >>> first, second = Excitation.of_stages("SE-Net", {"stages": [2]}, stages=2)
            >>> first.gate, second.gate
            ('none', 'channel')
        """
        known = [field.name for field in fields(cls) if field.name != "placement" or placements]
        known += ["stages"] if stages else []
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{family} has no option `{name}`. Its gates' options are: {', '.join(known)}."
                )
        given = {**defaults, **options}
        if placements:
            one_of("placement", given.get("placement", "standard"), placements)
        chosen = _chosen_stages(given.pop("stages", None), stages or 1)
        ratios = _per_stage(given.pop("ratio", cls.ratio), stages)
        every = [cls(ratio=ratio, **given) for ratio in ratios]
        return [
            one if number in chosen else cls(gate="none") for number, one in enumerate(every, 1)
        ]

    def build(self, channels: int) -> nn.Module:
        """Return the gate for a branch of ``channels`` channels; an identity for "none".

        What is not built has no parameter that DDP could wait for.
        """
        return BUILDERS[self.gate](self, channels)


def _per_stage(ratio: Any, stages: int | None) -> list[Any]:
    """Spread a ratio over the stages."""
    if not isinstance(ratio, Sequence) or isinstance(ratio, str):
        return [ratio] * (stages or 1)
    if stages is None:
        raise ValueError(f"`ratio` (={ratio!r}) must be one number: the network has no stages.")
    if len(ratio) != stages:
        raise ValueError(
            f"`ratio` (={list(ratio)!r}) must be a number, or one per stage, of which there are "
            f"{stages}."
        )
    return list(ratio)


def _chosen_stages(chosen: Any, stages: int) -> Sequence[int]:
    """Return the numbers of the stages with gates, which count from 1."""
    if chosen is None:
        return range(1, stages + 1)
    valid = isinstance(chosen, Sequence) and not isinstance(chosen, str)
    if not valid or any(type(n) is not int or not 1 <= n <= stages for n in chosen):
        raise ValueError(
            f"`stages` (={chosen!r}) must list numbers from 1 to {stages}; null takes them all."
        )
    return chosen


def _channel_options(e: Excitation) -> dict[str, Any]:
    shared = {"gate_activation": e.gate_activation, "bias": e.se_bias}
    return {"ratio": e.ratio, "squeeze": e.squeeze, "divisor": e.divisor, **shared}


BUILDERS: dict[str, Callable[[Excitation, int], nn.Module]] = {
    "channel": lambda e, channels: SqueezeExcitation(channels, **_channel_options(e)),
    "spatial": lambda e, channels: SpatialExcitation(
        channels, gate_activation=e.gate_activation, bias=e.se_bias
    ),
    "concurrent": lambda e, channels: ConcurrentExcitation(
        channels, merge=e.merge, **_channel_options(e)
    ),
    "none": lambda e, channels: nn.Identity(),
}
