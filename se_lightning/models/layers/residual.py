"""Residual units: the places of their gate, and the one tail that all of them end with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from se_lightning.arguments import boolean, positive_integer
from se_lightning.models.layers.options import Excitation

__all__ = [
    "CEIL_POOL_SIZE",
    "RESNETS",
    "Plan",
    "ResidualUnit",
    "conv1x1",
    "conv3x3",
    "max_pool",
    "plan",
    "projection",
    "stack",
    "stem_conv",
    "tail",
]

# Side of the smallest image for a stem whose pool has no padding, pixels.
CEIL_POOL_SIZE = 3


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size at stride 1, without a bias."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False
    )


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without a bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def stem_conv(stem: str, in_channels: int, width: int) -> nn.Sequential | nn.Conv2d:
    """Return a stem's convolutions, up to the norm that follows them.

    Raises:
        ValueError: for an unknown stem.
    """
    if stem == "imagenet":
        return nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
    if stem == "cifar":
        return conv3x3(in_channels, width)
    if stem != "deep":
        raise ValueError(f"`stem` (={stem!r}) must be one of imagenet, deep, cifar.")
    return nn.Sequential(
        conv3x3(in_channels, width, 2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, 2 * width),
    )


def max_pool(stem: str, ceil_pool: bool = False) -> nn.Module:
    """Return the pool after a stem; ``ceil_pool`` is the Caffe release's, without padding."""
    if stem == "cifar":
        if ceil_pool:
            raise ValueError("`ceil_pool` needs a stem with a max-pool, which cifar has not.")
        return nn.Identity()
    if ceil_pool:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return nn.MaxPool2d(3, stride=2, padding=1)


def projection(
    in_channels: int, out_channels: int, stride: int, kernel: int = 1
) -> nn.Sequential | None:
    """Return the shortcut that changes width or size, with its norm; None for the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    large = kernel == 3 and stride > 1
    conv = (conv3x3 if large else conv1x1)(in_channels, out_channels, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


Step = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """Return x: the step that is not there."""
    return x


def tail(
    x: Tensor,
    *,
    norm: Step = unchanged,
    gate_act: Step = unchanged,
    se: Step = unchanged,
    shortcut: Tensor | None = None,
    act: Step = unchanged,
) -> Tensor:
    """End a branch: norm, gate, shortcut, ReLU. The one place for a fused operator.

    ``gate_act`` is the ReLU that some ports have between norm and gate.
    """
    x = se(gate_act(norm(x)))
    return act(x if shortcut is None else x + shortcut)


class ResidualUnit(nn.Module):
    """A unit with one gate ``se``, at one of the places of the paper's Figure 5.

    Its forward asks at each place: ``self.at("pre")(x)`` is the gate where that is its place,
    and x itself where not.
    """

    expansion: ClassVar[int] = 1  # of the unit's width, at its output
    se: nn.Module
    placement: str

    def _gate(
        self, excitation: Excitation, in_channels: int, inner: int, out_channels: int
    ) -> nn.Module:
        """Build the gate as wide as its place is."""
        self.placement = excitation.placement
        widths = {"pre": in_channels, "inner": inner}
        return excitation.build(widths.get(excitation.placement, out_channels))

    def at(self, place: str) -> Step:
        """Return the gate, if this is its place."""
        return self.se if self.placement == place else unchanged

    def extra_repr(self) -> str:  # noqa: D102
        return "" if isinstance(self.se, nn.Identity) else f"placement={self.placement}"


def stack(
    unit: type[ResidualUnit], count: int, in_channels: int, width: int, stride: int, *options: Any
) -> nn.Sequential:
    """Stack the units of a stage, of which the first changes width and size.

    Args:
        unit: made as ``unit(in_channels, width, stride, *options)``.
        count: number of units.
        in_channels: channels that the stage reads.
        width: of each unit, before its expansion.
        stride: of the first unit.
        *options: what all units are given.
    """
    out_channels = width * unit.expansion
    first = unit(in_channels, width, stride, *options)
    return nn.Sequential(first, *(unit(out_channels, width, 1, *options) for _ in range(count - 1)))


class Plan(NamedTuple):
    """Stages of a residual network: blocks and widths of each, kind of block, stem."""

    layers: Sequence[int]
    widths: Sequence[int]
    bottleneck: bool
    stem: str


_IMAGENET, _CIFAR = (64, 128, 256, 512), (16, 32, 64)
# The published ResNets, post- and pre-activation alike.
RESNETS: dict[int, Plan] = {
    18: Plan((2, 2, 2, 2), _IMAGENET, False, "imagenet"),
    34: Plan((3, 4, 6, 3), _IMAGENET, False, "imagenet"),
    50: Plan((3, 4, 6, 3), _IMAGENET, True, "imagenet"),
    101: Plan((3, 4, 23, 3), _IMAGENET, True, "imagenet"),
    152: Plan((3, 8, 36, 3), _IMAGENET, True, "imagenet"),
    20: Plan((3, 3, 3), _CIFAR, False, "cifar"),
    32: Plan((5, 5, 5), _CIFAR, False, "cifar"),
    56: Plan((9, 9, 9), _CIFAR, False, "cifar"),
    110: Plan((18, 18, 18), _CIFAR, False, "cifar"),
    164: Plan((18, 18, 18), _CIFAR, True, "cifar"),
}


def plan(
    family: str,
    published: Mapping[int, Plan],
    depth: int | Sequence[int],
    widths: Sequence[int] | None,
    bottleneck: bool | None,
    stem: str | None,
) -> Plan:
    """Find the published member, or take the blocks of each stage; what is given goes on top.

    Raises:
        ValueError: if there is no such member, or the lists do not fit.
    """
    if isinstance(depth, Sequence) and not isinstance(depth, str):
        first = 16 if stem == "cifar" else 64
        chosen = Plan(depth, [first * 2**n for n in range(len(depth))], False, "imagenet")
    elif depth in published:
        chosen = published[depth]
    else:
        raise ValueError(
            f"There is no {family} of depth {depth!r}; there are: "
            f"{', '.join(map(str, sorted(published)))}. Or list the blocks of each stage: "
            "depth=[2, 2, 2, 2]."
        )
    given: dict[str, Any] = {"widths": widths, "bottleneck": bottleneck, "stem": stem}
    chosen = chosen._replace(**{k: v for k, v in given.items() if v is not None})
    for name, values in (("depth", chosen.layers), ("widths", chosen.widths)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"`{name}` (={values!r}) must list a number per stage.")
        for value in values:
            positive_integer(name, value)
    boolean("bottleneck", chosen.bottleneck)
    if len(chosen.layers) != len(chosen.widths):
        raise ValueError(
            f"`depth` (={list(chosen.layers)}) and `widths` (={list(chosen.widths)}) must be of "
            "the same length, one number a stage."
        )
    return chosen
