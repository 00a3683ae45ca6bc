"""SE-DenseNet, for ImageNet and for CIFAR."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Unpack

from torch import nn

from se_lightning.arguments import boolean, fraction, one_of, positive_integer
from se_lightning.models.layers.dense_block import DenseBlock, transition
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, StagedGateOptions
from se_lightning.models.layers.residual import max_pool, stem_conv

__all__ = [
    "SEDenseNet",
    "se_densenet40_12",
    "se_densenet100_12",
    "se_densenet100_24",
    "se_densenet121",
    "se_densenet161",
    "se_densenet169",
    "se_densenet201",
    "se_densenet264",
    "se_densenet_bc100_12",
    "se_densenet_bc190_40",
    "se_densenet_bc250_24",
]


class Member(NamedTuple):
    """A published DenseNet: layers per block, growth rate k, channels of the stem."""

    layers: tuple[int, ...]
    growth_rate: int
    init_features: int


IMAGENET = {
    121: Member((6, 12, 24, 16), 32, 64),
    161: Member((6, 12, 36, 24), 48, 96),
    169: Member((6, 12, 32, 32), 32, 64),
    201: Member((6, 12, 48, 32), 32, 64),
    264: Member((6, 12, 64, 48), 32, 64),
}
GATES_AFTER = {"both": (True, True), "block": (True, False), "transition": (False, True)}


class SEDenseNet(ImageNetwork):
    """DenseNet with a gate after each dense block and after each transition.

    The gates are placed as in the Keras seed (titu1994/keras-squeeze-excite-network,
    se_densenet.py). The seed counts (depth - 4) / 3 layers per block even with bottlenecks, so its
    "100, bottleneck" has twice the layers of DenseNet-BC-100; here a bottleneck layer counts as
    two, as published. Parameter names are torchvision's.

    Args:
        depth: 121, 161, 169, 201, 264; with the cifar stem any L of three equal blocks (3n + 4,
            with bottlenecks 6n + 4); or a list with the number of layers of each block.
        growth_rate: Channels k that a layer adds; None uses the published value, or 12.
        bottleneck: Whether a 1x1 to 4k channels precedes each 3x3 (DenseNet-B).
        compression: Fraction of the channels that a transition keeps (DenseNet-C); None means
            0.5 with bottlenecks and 1 without.
        init_features: Channels of the stem; None uses the published value: 2k with bottlenecks or
            with the imagenet stem, else 16 (the seed always has 2k).
        stem: ``"imagenet"`` or ``"cifar"``; None means imagenet for a published ImageNet depth
            and cifar otherwise.
        gates_after: ``"both"``, ``"block"`` or ``"transition"``. A stage is a block with the
            transition that follows it.
        dropout_rate: Dropout rate after the last convolution of each layer.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement, and ``stages``; ``se_bias``
            defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If there is no network of that depth, a number is out of range, a name is
            unknown, or a gate option is refused.

    Reference:
        Huang et al., arXiv:1608.06993.
    """

    family = "SE-DenseNet"
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}
    classifier_name = "classifier"

    def __init__(
        self,
        depth: int | Sequence[int] = 121,
        growth_rate: int | None = None,
        *,
        bottleneck: bool = True,
        compression: float | None = None,
        init_features: int | None = None,
        stem: str | None = None,
        gates_after: str = "both",
        dropout_rate: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        boolean("bottleneck", bottleneck)
        one_of("gates_after", gates_after, GATES_AFTER)
        fraction("dropout_rate", dropout_rate)
        if stem is None:
            listed = isinstance(depth, Sequence)
            stem = "imagenet" if not listed and depth in IMAGENET else "cifar"
        one_of("stem", stem, ("imagenet", "cifar"))
        member = _member(depth, stem, bottleneck, growth_rate, init_features)
        keep = (0.5 if bottleneck else 1.0) if compression is None else compression
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
            raise ValueError(
                f"`compression` (={compression!r}) must be above 0 and at most 1: the fraction of "
                "channels that a transition keeps."
            )
        stages = len(member.layers)
        excitations = self._excitations(gates, stages)
        # Each transition halves and rounds down; the imagenet stem divides by 4 and rounds up.
        halved = 2 ** (stages - 1)
        smallest = 4 * halved - 3 if stem == "imagenet" else halved
        super().__init__(num_classes, in_channels, min_size=smallest)
        self.native_size = 32 if stem == "cifar" else 224
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv0"] = stem_conv(stem, in_channels, member.init_features)
        if stem == "imagenet":
            parts["norm0"] = nn.BatchNorm2d(member.init_features)
            parts["relu0"] = nn.ReLU(inplace=True)
            parts["pool0"] = max_pool(stem)
        blocks, channels = _blocks(member, bottleneck, keep, gates_after, excitations, dropout_rate)
        parts |= blocks
        # torchvision's name; its networks have four blocks.
        parts["norm5"] = nn.BatchNorm2d(channels[-1])
        parts["relu5"] = nn.ReLU(inplace=True)
        self.features = nn.Sequential(parts)
        self._lay_route(member, channels, stem)
        self.global_pool, self.classifier = self._head(num_classes, gates)
        self._finish()

    def _lay_route(self, member: Member, channels: Sequence[int], stem: str) -> None:
        """Define the steps; the map of a block is its output, before the transition halves it."""
        names = [f"features.{name}" for name, _ in self.features.named_children()]
        ends = ["conv0" if stem == "cifar" else "relu0"]
        ends += [f"denseblock{number}" for number in range(1, len(member.layers))] + ["relu5"]
        widths = [member.init_features, *channels]
        for number, (end, width) in enumerate(zip(ends, widths, strict=True)):
            after = names.index(f"features.{end}") + 1
            reduction = 2 ** max(number - 1, 0) if stem == "cifar" else 2 ** (number + 1)
            self._step(*names[:after], channels=width, reduction=reduction)
            names = names[after:]


def _member(
    depth: int | Sequence[int],
    stem: str,
    bottleneck: bool,
    growth_rate: int | None,
    init_features: int | None,
) -> Member:
    """Return the published member or a custom one, with the given values."""
    if isinstance(depth, Sequence):
        if isinstance(depth, str) or not depth:
            raise ValueError(f"`depth` (={depth!r}) must be a number, or one per block.")
        layers = tuple(depth)
    elif stem == "imagenet":
        if depth not in IMAGENET:
            raise ValueError(
                f"There is no SE-DenseNet of depth {depth!r} for ImageNet. Use one of "
                f"{', '.join(map(str, IMAGENET))}, or list the layers of each block: "
                "depth=[6, 12, 24, 16]."
            )
        layers, own_rate, own_features = IMAGENET[depth]
        growth_rate = own_rate if growth_rate is None else growth_rate
        init_features = own_features if init_features is None else init_features
    else:
        positive_integer("depth", depth)
        step = 6 if bottleneck else 3
        if depth < step + 4 or (depth - 4) % step:
            raise ValueError(
                f"`depth` (={depth}) must be {step}n + 4 for three equal blocks "
                f"{'with' if bottleneck else 'without'} bottlenecks, or a list: [6, 12, 24, 16]."
            )
        layers = ((depth - 4) // step,) * 3
    for count in layers:
        positive_integer("depth", count)
    growth_rate = 12 if growth_rate is None else growth_rate
    positive_integer("growth_rate", growth_rate)
    if init_features is None:
        init_features = 2 * growth_rate if bottleneck or stem == "imagenet" else 16
    positive_integer("init_features", init_features)
    return Member(layers, growth_rate, init_features)


def _blocks(
    member: Member,
    bottleneck: bool,
    keep: float,
    gates_after: str,
    excitations: Sequence[Excitation],
    dropout_rate: float,
) -> tuple[dict[str, nn.Module], list[int]]:
    """Return the blocks and transitions with their gates, and the channels after each block."""
    parts: dict[str, nn.Module] = {}
    after: list[int] = []
    channels = member.init_features
    none = Excitation(gate="none")
    after_block, after_transition = GATES_AFTER[gates_after]
    for stage, (count, excitation) in enumerate(zip(member.layers, excitations, strict=True), 1):
        gathered = channels + count * member.growth_rate
        gate = (excitation if after_block else none).build(gathered)
        block = DenseBlock(count, channels, member.growth_rate, bottleneck, gate, dropout_rate)
        parts[f"denseblock{stage}"] = block
        channels = gathered
        after.append(gathered)
        if stage < len(member.layers):
            kept = int(channels * keep)
            positive_integer("channels after a transition", kept)
            gate = (excitation if after_transition else none).build(kept)
            parts[f"transition{stage}"] = transition(channels, kept, gate)
            channels = kept
    return parts, after


def se_densenet121(num_classes: int = 1000, **options: Any) -> SEDenseNet:
    """SE-DenseNet-121. Options as in :class:`SEDenseNet`."""
    return SEDenseNet(121, num_classes=num_classes, **options)


def se_densenet161(num_classes: int = 1000, **options: Any) -> SEDenseNet:
    """SE-DenseNet-161. Options as in :class:`SEDenseNet`."""
    return SEDenseNet(161, num_classes=num_classes, **options)


def se_densenet169(num_classes: int = 1000, **options: Any) -> SEDenseNet:
    """SE-DenseNet-169. Options as in :class:`SEDenseNet`."""
    return SEDenseNet(169, num_classes=num_classes, **options)


def se_densenet201(num_classes: int = 1000, **options: Any) -> SEDenseNet:
    """SE-DenseNet-201. Options as in :class:`SEDenseNet`."""
    return SEDenseNet(201, num_classes=num_classes, **options)


def se_densenet264(num_classes: int = 1000, **options: Any) -> SEDenseNet:
    """SE-DenseNet-264. Options as in :class:`SEDenseNet`."""
    return SEDenseNet(264, num_classes=num_classes, **options)


def se_densenet40_12(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet (L = 40, k = 12) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 12, "bottleneck": False, "stem": "cifar", **options}
    return SEDenseNet(40, num_classes=num_classes, **options)


def se_densenet100_12(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet (L = 100, k = 12) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 12, "bottleneck": False, "stem": "cifar", **options}
    return SEDenseNet(100, num_classes=num_classes, **options)


def se_densenet100_24(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet (L = 100, k = 24) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 24, "bottleneck": False, "stem": "cifar", **options}
    return SEDenseNet(100, num_classes=num_classes, **options)


def se_densenet_bc100_12(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet-BC (L = 100, k = 12) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 12, "stem": "cifar", **options}
    return SEDenseNet(100, num_classes=num_classes, **options)


def se_densenet_bc190_40(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet-BC (L = 190, k = 40) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 40, "stem": "cifar", **options}
    return SEDenseNet(190, num_classes=num_classes, **options)


def se_densenet_bc250_24(num_classes: int = 10, **options: Any) -> SEDenseNet:
    """SE-DenseNet-BC (L = 250, k = 24) for 32x32 images. Options as in :class:`SEDenseNet`."""
    options = {"growth_rate": 24, "stem": "cifar", **options}
    return SEDenseNet(250, num_classes=num_classes, **options)
