"""Residual units: the placements of the gate, and the last steps that all units share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from se_lightning.arguments import boolean, positive_integer
from se_lightning.models.layers.fused import fuses, is_plain, rescaled
from se_lightning.models.layers.gate_base import Gate
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
    "stem_channels",
    "stem_conv",
    "tail",
]

# Side of the smallest image for a stem whose pool has no padding, in pixels.
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
        ValueError: If the stem is unknown.
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


def stem_channels(stem_width: int | None, widths: Sequence[int]) -> int:
    """Return the channels of a stem: the given number, or the first of the stages' widths."""
    if stem_width is None:
        return widths[0]
    positive_integer("stem_width", stem_width)
    return stem_width


def max_pool(stem: str, ceil_pool: bool = False) -> nn.Module:
    """Return the pool after a stem; with ``ceil_pool``, that of the Caffe release, unpadded."""
    if stem == "cifar":
        if ceil_pool:
            raise ValueError("`ceil_pool` needs a stem with a max-pool; the cifar stem has none.")
        return nn.Identity()
    if ceil_pool:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return nn.MaxPool2d(3, stride=2, padding=1)


def projection(
    in_channels: int, out_channels: int, stride: int, kernel: int = 1
) -> nn.Sequential | None:
    """Return a projection shortcut with its norm; None for an identity shortcut."""
    if stride == 1 and in_channels == out_channels:
        return None
    large = kernel == 3 and stride > 1
    conv = (conv3x3 if large else conv1x1)(in_channels, out_channels, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


Step = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """Return x."""
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
    """Finish a branch with norm, gate, shortcut and ReLU, fused around the gate where possible.

    ``gate_act`` is the ReLU that some implementations have between norm and gate.
    """
    excite = se.from_means() if isinstance(se, Gate) else None
    if excite is None or not fuses(x, se):
        x = se(gate_act(norm(x)))
        return act(x if shortcut is None else x + shortcut)
    first = None
    if is_plain(norm, nn.BatchNorm2d) and (
        gate_act is unchanged or is_plain(gate_act, nn.Identity)
    ):
        first = norm
    else:
        x = gate_act(norm(x))
    later = None
    if shortcut is not None and (shortcut.shape, shortcut.dtype) != (x.shape, x.dtype):
        shortcut, later = None, shortcut
    relu = later is None and is_plain(act, nn.ReLU)
    x = rescaled(x, excite, norm=first, shortcut=shortcut, relu=relu)
    x = x if later is None else x + later
    return x if relu else act(x)


class ResidualUnit(nn.Module):
    """Residual unit with one gate ``se``, at one of the placements of the paper's Figure 5.

    In ``forward``, ``self.at("pre")(x)`` applies the gate if its placement is "pre", and returns
    x otherwise.
    """

    expansion: ClassVar[int] = 1  # output channels / width
    se: nn.Module
    placement: str

    def _gate(
        self, excitation: Excitation, in_channels: int, inner: int, out_channels: int
    ) -> nn.Module:
        """Build the gate with the width at its placement."""
        self.placement = excitation.placement
        widths = {"pre": in_channels, "inner": inner}
        return excitation.build(widths.get(excitation.placement, out_channels))

    def at(self, place: str) -> Step:
        """Return the gate if this is its placement, else the identity."""
        return self.se if self.placement == place else unchanged

    def extra_repr(self) -> str:  # noqa: D102
        return "" if isinstance(self.se, nn.Identity) else f"placement={self.placement}"


def stack(
    unit: type[ResidualUnit], count: int, in_channels: int, width: int, stride: int, *options: Any
) -> nn.Sequential:
    """Return the units of a stage; the first one changes width and size.

    Args:
        unit: Class, called as ``unit(in_channels, width, stride, *options)``.
        count: Number of units.
        in_channels: Input channels of the stage.
        width: Width of each unit, before its expansion.
        stride: Stride of the first unit.
        *options: Further arguments of all units.
    """
    out_channels = width * unit.expansion
    first = unit(in_channels, width, stride, *options)
    return nn.Sequential(first, *(unit(out_channels, width, 1, *options) for _ in range(count - 1)))


class Plan(NamedTuple):
    """Stages of a residual network: blocks and width of each, kind of block, stem."""

    layers: Sequence[int]
    widths: Sequence[int]
    bottleneck: bool
    stem: str


_IMAGENET, _CIFAR = (64, 128, 256, 512), (16, 32, 64)
# The published ResNets, both post- and pre-activation.
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
    """Return the published network or a custom one, with the given values.

    Raises:
        ValueError: If there is no network of that depth, a number is not positive, or ``depth``
            and ``widths`` differ in length.
    """
    if isinstance(depth, Sequence) and not isinstance(depth, str):
        first = 16 if stem == "cifar" else 64
        chosen = Plan(depth, [first * 2**n for n in range(len(depth))], False, "imagenet")
    elif depth in published:
        chosen = published[depth]
    else:
        raise ValueError(
            f"There is no {family} of depth {depth!r}. Use one of "
            f"{', '.join(map(str, sorted(published)))}, or list the blocks of each stage: "
            "depth=[2, 2, 2, 2]."
        )
    given: dict[str, Any] = {"widths": widths, "bottleneck": bottleneck, "stem": stem}
    chosen = chosen._replace(**{k: v for k, v in given.items() if v is not None})
    for name, values in (("depth", chosen.layers), ("widths", chosen.widths)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"`{name}` (={values!r}) must be a list with a number per stage.")
        for value in values:
            positive_integer(name, value)
    boolean("bottleneck", chosen.bottleneck)
    if len(chosen.layers) != len(chosen.widths):
        raise ValueError(
            f"`depth` (={list(chosen.layers)}) and `widths` (={list(chosen.widths)}) must have "
            "the same length, with one number per stage."
        )
    return chosen
