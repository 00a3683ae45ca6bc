"""The options of gates, shared by all blocks of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import Parameter
from typing import Any, TypedDict

from torch import nn

from se_lightning.arguments import boolean, one_of, refuse_unknown
from se_lightning.models.layers.gates import (
    ACTIVATIONS,
    GATES,
    MERGES,
    SQUEEZES,
    gate_options,
    hidden_width,
)

__all__ = [
    "PLACEMENTS",
    "Excitation",
    "GateOptions",
    "HeadOptions",
    "ResidualGateOptions",
    "StagedGateOptions",
    "own_options",
]

PLACEMENTS = ("standard", "pre", "post", "identity", "inner")


class GateOptions(TypedDict, total=False):
    """Options of every family; see :class:`Excitation`."""

    ratio: float | Sequence[float]
    gate: str
    squeeze: str
    gate_activation: str
    merge: str
    se_bias: bool
    divisor: int


class HeadOptions(TypedDict, total=False):
    """Options of the last layers, see :class:`se_lightning.models.ImageNetwork`.

    Args:
        global_pool: Pool before the classifier: ``"avg"``, ``"max"``, or another one that the
            network's ``pools`` lists.
        init: Initial weights of the convolutions: ``"fan_out"`` (He et al., as in torchvision), or
            ``"he_normal"``, Keras's, as in the Keras seeds: a normal distribution of variance 2 /
            fan-in, cut off at twice its deviation, also for the classifier.
    """

    global_pool: str
    init: str


class StagedGateOptions(GateOptions, HeadOptions, total=False):
    """Options of a family with stages: also one ratio per stage, and a selection of stages.

    Args:
        ratio: Reduction ratio r, at least 1, or a list with that of each stage; the hidden width is
            ``max(1, C // r)``.
        stages: Numbers of the stages with gates, counted from 1; None for all stages.
    """

    stages: Sequence[int] | None


class ResidualGateOptions(StagedGateOptions, total=False):
    """Options of a residual family, whose units have several places for a gate."""

    placement: str


def own_options() -> dict[str, Parameter]:
    """Return the options of particular gates that are not attributes of :class:`Excitation`."""
    shared = {"bias", *(field.name for field in fields(Excitation))}
    every = {name: p for gate in GATES for name, p in gate_options(gate).items()}
    return {
        name: p.replace(kind=Parameter.KEYWORD_ONLY)
        for name, p in every.items()
        if name not in shared
    }


@dataclass(frozen=True)
class Excitation:
    """The options of the gates of one stage, checked once and shared by its blocks.

    Args:
        ratio: Reduction ratio r, at least 1; the hidden width is ``max(1, C // r)``.
        gate: ``"channel"`` for squeeze-and-excitation, ``"spatial"``, ``"concurrent"`` for both
            (Roy et al.), ``"none"`` for the plain twin.
        squeeze: Pooling over space: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of the two), or
            ``"none"``, which computes a gate per pixel (the paper's NoSqueeze).
        gate_activation: Activation of the last layer's output: ``"sigmoid"``, ``"tanh"``,
            ``"relu"``, ``"hard-sigmoid"``, ``"double-sigmoid"`` (starts at exactly 1).
        merge: How a concurrent gate merges its outputs: ``"sum"``, ``"max"``, ``"product"``.
        se_bias: Whether the gates' layers have biases, as in the released networks; those of the
            paper's section 6 have none.
        divisor: Round the hidden width to the nearest multiple, as timm does with 8; 1 keeps it
            exact.
        placement: Place of the gate in a residual unit (the paper's Figure 5): ``"standard"`` on
            the residual branch, ``"pre"`` before it, ``"post"`` after the sum, ``"identity"`` on
            the shortcut, ``"inner"`` right after the 3x3 convolution.
        own: Options of one kind of gate that are not listed here.

    Raises:
        ValueError: If a value is out of range, a name is unknown, or an option does not apply to
            the gate.

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
    own: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hidden_width(1, self.ratio, self.divisor)  # checks both
        one_of("gate", self.gate, GATES)
        one_of("squeeze", self.squeeze, SQUEEZES)
        one_of("gate_activation", self.gate_activation, ACTIVATIONS)
        one_of("merge", self.merge, MERGES)
        one_of("placement", self.placement, PLACEMENTS)
        boolean("se_bias", self.se_bias)
        if self.gate != "none":
            for name, value in {"squeeze": self.squeeze, "merge": self.merge, **self.own}.items():
                self._check_applies(name, value)

    def _check_applies(self, name: str, value: object) -> None:
        """Refuse an option of other gates, unless it has its default value."""
        takers = {gate: gate_options(gate) for gate in GATES if name in gate_options(gate)}
        defaults = [options[name].default for options in takers.values()]
        if self.gate not in takers and value not in defaults:
            raise ValueError(f"`{name}` (={value!r}) applies only to gate={' or '.join(takers)}.")

    @classmethod
    def of(cls, **options: Any) -> "Excitation":
        """Build from flat options, moving those of particular gates to ``own``."""
        own = {name: options.pop(name) for name in own_options() if name in options}
        return cls(**options, own=own)

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
        """Check a family's gate options and return one set per stage.

        Args:
            family: Name of the family, for messages.
            options: Options as the user gave them.
            stages: Number of stages; None for a network without stages, which refuses ``stages``
                and a ratio per stage, and gets a single set.
            placements: Placements that the family's units have; empty if they have one place.
            **defaults: Defaults of the family that differ from those of this class.

        Raises:
            ValueError: If the family does not have an option, or its value is refused.

        Example:
            >>> first, second = Excitation.of_stages("SE-Net", {"stages": [2]}, stages=2)
            >>> first.gate, second.gate
            ('none', 'channel')
        """
        unknown = {"own"} if placements else {"own", "placement"}
        known = [field.name for field in fields(cls) if field.name not in unknown]
        known += ["stages"] if stages else []
        known += own_options()
        refuse_unknown(family, options, known)
        given = {**defaults, **options}
        if placements:
            one_of("placement", given.get("placement", "standard"), placements)
        chosen = _chosen_stages(given.pop("stages", None), stages or 1)
        ratios = _per_stage(given.pop("ratio", cls.ratio), stages)
        every = [cls.of(ratio=ratio, **given) for ratio in ratios]
        return [
            one if number in chosen else cls(gate="none") for number, one in enumerate(every, 1)
        ]

    def build(self, channels: int) -> nn.Module:
        """Return the gate for a branch of ``channels`` channels; an identity for "none".

        An identity has no parameters; DDP would wait for the gradients of an unused gate.
        """
        values = {**vars(self), **self.own, "bias": self.se_bias}
        options = {name: values[name] for name in gate_options(self.gate) if name in values}
        return GATES[self.gate](channels, **options)


def _per_stage(ratio: Any, stages: int | None) -> list[Any]:
    """Return a ratio per stage."""
    if not isinstance(ratio, Sequence) or isinstance(ratio, str):
        return [ratio] * (stages or 1)
    if stages is None:
        raise ValueError(f"`ratio` (={ratio!r}) must be one number: the network has no stages.")
    if len(ratio) != stages:
        raise ValueError(
            f"`ratio` (={list(ratio)!r}) must be a number, or one per stage; the network has "
            f"{stages} stages."
        )
    return list(ratio)


def _chosen_stages(chosen: Any, stages: int) -> Sequence[int]:
    """Return the numbers of the stages with gates, counted from 1."""
    if chosen is None:
        return range(1, stages + 1)
    valid = isinstance(chosen, Sequence) and not isinstance(chosen, str)
    if not valid or any(type(n) is not int or not 1 <= n <= stages for n in chosen):
        raise ValueError(
            f"`stages` (={chosen!r}) must list numbers from 1 to {stages}; null selects all stages."
        )
    return chosen
