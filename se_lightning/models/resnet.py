"""SE-ResNet, for ImageNet and for CIFAR; SE-ResNeXt shares its blocks and network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.arguments import boolean, one_of, positive_integer
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import PLACEMENTS, Excitation, ResidualGateOptions
from se_lightning.models.layers.residual import (
    CEIL_POOL_SIZE,
    RESNETS,
    Plan,
    ResidualUnit,
    conv1x1,
    conv3x3,
    max_pool,
    plan,
    projection,
    stack,
    stem_channels,
    stem_conv,
    tail,
)

__all__ = [
    "SEResNet",
    "se_resnet18",
    "se_resnet20",
    "se_resnet32",
    "se_resnet34",
    "se_resnet50",
    "se_resnet56",
    "se_resnet101",
    "se_resnet110",
    "se_resnet152",
    "se_resnet164",
]


class PostActUnit(ResidualUnit, ABC):
    """Residual unit that ends with norm, gate, shortcut and ReLU."""

    downsample: nn.Module | None
    gate_act: nn.Module
    act: nn.Module

    @abstractmethod
    def _branch(self, x: Tensor) -> tuple[Tensor, nn.Module]:
        """Run the branch up to its last convolution; return its output and the following norm."""

    def forward(self, x: Tensor) -> Tensor:
        out, norm = self._branch(self.at("pre")(x))
        shortcut = self.at("identity")(x if self.downsample is None else self.downsample(x))
        se = self.at("standard")
        out = tail(out, norm=norm, gate_act=self.gate_act, se=se, shortcut=shortcut, act=self.act)
        return self.at("post")(out)


class BasicBlock(PostActUnit):
    """Two 3x3 convolutions, the second followed by the gate; an inner gate follows the first.

    Shape:
        (N, in_channels, H, W) to (N, width, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        excitation: Excitation,
        groups: int = 1,
        group_width: int = 64,
        stride_in: str = "3x3",
        relu_before_gate: bool = False,
    ) -> None:
        super().__init__()
        if groups != 1 or group_width != 64 or stride_in != "3x3":
            raise ValueError(
                f"BasicBlock has two 3x3 convolutions without groups, got cardinality={groups}, "
                f"group_width={group_width}, stride_in={stride_in!r}. Use bottlenecks: a depth of "
                "50 or more, or bottleneck=True."
            )
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = self._gate(excitation, in_channels, width, width)
        self.downsample = projection(in_channels, width, stride)
        self.act = nn.ReLU(inplace=True)
        self.gate_act = nn.ReLU(inplace=True) if relu_before_gate else nn.Identity()

    def _branch(self, x: Tensor) -> tuple[Tensor, nn.Module]:
        x = tail(self.conv1(x), norm=self.bn1, se=self.at("inner"), act=self.act)
        return self.conv2(x), self.bn2


class Bottleneck(PostActUnit):
    """1x1 down, 3x3 with the groups, 1x1 up, followed by the gate.

    The stride is in the 3x3, as in torchvision and timm, or in the first 1x1, as in the paper's
    Caffe release (https://github.com/hujie-frank/SENet).

    Shape:
        (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride).
    """

    expansion = 4
    reduce_first = 1
    projection_kernel = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        excitation: Excitation,
        groups: int = 1,
        group_width: int = 64,
        stride_in: str = "3x3",
        relu_before_gate: bool = False,
    ) -> None:
        super().__init__()
        inner = width * group_width // 64 * groups
        positive_integer("width * group_width // 64", inner)
        first = inner // self.reduce_first
        out_channels = width * self.expansion
        strides = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = conv1x1(in_channels, first, strides[0])
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = conv3x3(first, inner, strides[1], groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se = self._gate(excitation, in_channels, inner, out_channels)
        self.downsample = projection(in_channels, out_channels, stride, self.projection_kernel)
        self.act = nn.ReLU(inplace=True)
        self.gate_act = nn.ReLU(inplace=True) if relu_before_gate else nn.Identity()

    def _branch(self, x: Tensor) -> tuple[Tensor, nn.Module]:
        x = self.act(self.bn1(self.conv1(x)))
        x = tail(self.conv2(x), norm=self.bn2, se=self.at("inner"), act=self.act)
        return self.conv3(x), self.bn3


class SEResNet(ImageNetwork):
    """ResNet with a gate in each residual unit.

    Parameter names are torchvision's, and timm's for the gates; state dicts of both load.

    Args:
        depth: 18, 34, 50, 101, 152; 20, 32, 56, 110, 164 for small images; or a list with the
            number of blocks of each stage.
        widths: Width of each stage before the block's expansion; None uses the published widths
            (for a list: 64, with the cifar stem 16, doubled in each stage).
        bottleneck: Whether blocks are 1x1-3x3-1x1 with an expansion of 4, or two 3x3; None uses
            the published value (for a list: False).
        width_factor: Factor k of all widths except the stem's.
        stem: ``"imagenet"`` (7x7 with stride 2, then max-pool with stride 2), ``"deep"`` (three
            3x3 instead of the 7x7) or ``"cifar"`` (3x3 with stride 1); None uses the published
            stem.
        stem_width: Channels of the stem's first convolution; None uses the first of the widths.
        cardinality: Number of groups of the bottlenecks' 3x3 convolutions.
        group_width: Width of a group at a stage width of 64 (ResNeXt's d; 128 with one group is
            torchvision's wide_resnet50_2).
        stride_in: Which convolution of a bottleneck has the stride: ``"3x3"``, or ``"1x1"`` as in
            the paper's Caffe release.
        ceil_pool: Whether the max-pool has no padding and rounds its size up, as in that release.
        relu_before_gate: Whether a ReLU is between the last norm and the gate, as in timm's
            legacy_seresnet18 and 34.
        dropout: Dropout rate before the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`, where ``ratio`` may list one ratio per stage, and
            ``stages``, the list of the stages with gates, counted from 1. ``se_bias`` defaults to
            True.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If there is no such depth, two lengths differ, or an option is refused.

    Reference:
        Hu et al., arXiv:1709.01507; He et al., arXiv:1512.03385.
    """

    family = "SE-ResNet"
    placements = PLACEMENTS
    published: ClassVar[Mapping[int, Plan]] = RESNETS
    bottleneck_block: ClassVar[type[Bottleneck]] = Bottleneck

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        widths: Sequence[int] | None = None,
        *,
        bottleneck: bool | None = None,
        width_factor: int = 1,
        stem: str | None = None,
        stem_width: int | None = None,
        cardinality: int = 1,
        group_width: int = 64,
        stride_in: str = "3x3",
        ceil_pool: bool = False,
        relu_before_gate: bool = False,
        dropout: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        chosen = plan(self.family, self.published, depth, widths, bottleneck, stem)
        positive_integer("width_factor", width_factor)
        positive_integer("cardinality", cardinality)
        positive_integer("group_width", group_width)
        one_of("stride_in", stride_in, ("3x3", "1x1"))
        boolean("ceil_pool", ceil_pool)
        boolean("relu_before_gate", relu_before_gate)
        excitations = self._excitations(gates, len(chosen.layers))
        smallest = CEIL_POOL_SIZE if ceil_pool else 1
        super().__init__(num_classes, in_channels, min_size=smallest, dropout=dropout)
        first = stem_channels(stem_width, chosen.widths)
        channels = first * (2 if chosen.stem == "deep" else 1)
        self.native_size = 32 if chosen.stem == "cifar" else 224
        self.conv1 = stem_conv(chosen.stem, in_channels, first)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = max_pool(chosen.stem, ceil_pool)
        block: type[PostActUnit] = self.bottleneck_block if chosen.bottleneck else BasicBlock
        self.variant = {"ceil_pool": ceil_pool, "relu_before_gate": relu_before_gate}
        self.variant["stride_in"] = stride_in
        stem_reduction = 1 if chosen.stem == "cifar" else 2
        self._step("conv1", "bn1", "act", channels=channels, reduction=stem_reduction)
        options = cardinality, group_width, stride_in, relu_before_gate
        for stage, (count, width) in enumerate(zip(chosen.layers, chosen.widths, strict=True)):
            width *= width_factor
            stride = 2 if stage else 1
            layer = stack(block, count, channels, width, stride, excitations[stage], *options)
            channels = width * block.expansion
            name = f"layer{stage + 1}"
            self.add_module(name, layer)
            reduction = (1 if chosen.stem == "cifar" else 4) * 2**stage
            entry = () if stage else ("maxpool",)
            self._step(*entry, name, channels=channels, reduction=reduction)
        self.inplanes = channels  # read by torchvision's builders of feature pyramids
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()


def se_resnet18(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-18: 11,778,592 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(18, num_classes=num_classes, **options)


def se_resnet34(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-34: 21,958,868 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(34, num_classes=num_classes, **options)


def se_resnet50(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-50: 28,088,024 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(50, num_classes=num_classes, **options)


def se_resnet101(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-101: 49,326,872 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(101, num_classes=num_classes, **options)


def se_resnet152(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-152: 66,821,848 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(152, num_classes=num_classes, **options)


def se_resnet20(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-20 for 32x32 images: 274,847 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(20, num_classes=num_classes, **options)


def se_resnet32(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-32 for 32x32 images: 470,861 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(32, num_classes=num_classes, **options)


def se_resnet56(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-56 for 32x32 images: 862,889 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(56, num_classes=num_classes, **options)


def se_resnet110(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-110 for 32x32 images: 1,744,952 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(110, num_classes=num_classes, **options)


def se_resnet164(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-164 for 32x32 images: 1,906,258 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(164, num_classes=num_classes, **options)
