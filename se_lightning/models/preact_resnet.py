"""Pre-activation SE-ResNet, for ImageNet and for CIFAR."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.arguments import boolean, one_of, positive_integer
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import (
    PLACEMENTS,
    Excitation,
    GateOptions,
    ResidualGateOptions,
)
from se_lightning.models.layers.residual import (
    RESNETS,
    Plan,
    ResidualUnit,
    conv1x1,
    conv3x3,
    max_pool,
    plan,
    stack,
    stem_channels,
    stem_conv,
    tail,
)

__all__ = [
    "SEPreActResNet",
    "se_preact_resnet18",
    "se_preact_resnet20",
    "se_preact_resnet32",
    "se_preact_resnet34",
    "se_preact_resnet50",
    "se_preact_resnet56",
    "se_preact_resnet101",
    "se_preact_resnet110",
    "se_preact_resnet152",
    "se_preact_resnet164",
]


class PreActUnit(ResidualUnit, ABC):
    """Norm, ReLU, convolution, two or three times; the last convolution is followed by the gate.

    A projection reads the pre-activated input, an identity shortcut the input itself. A "pre"
    gate is on the branch only, between the first activation and the first convolution.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    bn1: nn.Module
    act: nn.Module

    def _shortcut(self, in_channels: int, out_channels: int, stride: int) -> None:
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else conv1x1(in_channels, out_channels, stride)

    @abstractmethod
    def _branch(self, x: Tensor) -> Tensor:
        """Run the branch, after its first norm and ReLU, to its last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        shortcut = self.at("identity")(x if self.downsample is None else self.downsample(out))
        out = self._branch(self.at("pre")(out))
        return self.at("post")(tail(out, se=self.at("standard"), shortcut=shortcut))


class PreActBasicBlock(PreActUnit):
    """Two 3x3 convolutions; an inner gate follows the first."""

    def __init__(self, in_channels: int, width: int, stride: int, excitation: Excitation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.se = self._gate(excitation, in_channels, width, width)
        self._shortcut(in_channels, width, stride)
        self.act = nn.ReLU(inplace=True)

    def _branch(self, x: Tensor) -> Tensor:
        x = self.at("inner")(self.conv1(x))
        return self.conv2(self.act(self.bn2(x)))


class PreActBottleneck(PreActUnit):
    """1x1 down, 3x3 with the stride, 1x1 up; an inner gate follows the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, excitation: Excitation) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.se = self._gate(excitation, in_channels, width, out_channels)
        self._shortcut(in_channels, out_channels, stride)
        self.act = nn.ReLU(inplace=True)

    def _branch(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.at("inner")(self.conv2(self.act(self.bn2(x))))
        return self.conv3(self.act(self.bn3(x)))


class SEPreActResNet(ImageNetwork):
    """Pre-activation ResNet with a gate at the end of each residual branch.

    The network of the Keras seed (titu1994/keras-squeeze-excite-network, se_resnet.py), with a
    norm and a ReLU after the 7x7 stem and a bias in the classifier, which the seed omits. Strided
    layers pad evenly on all sides, as in torch; TensorFlow's "same" pads one more at the end. The
    CIFAR stem has no norm, as published: the first unit starts with one.

    Args:
        depth: 18, 34, 50, 101, 152; 20, 32, 56, 110, 164 for small images; or a list with the
            number of units of each stage.
        widths: Width of each stage before the unit's expansion; None uses the published widths
            (for a list: 64, with the cifar stem 16, doubled in each stage).
        bottleneck: Whether units are 1x1-3x3-1x1 with an expansion of 4, or two 3x3; None uses
            the published value (for a list: False).
        width_factor: Factor k of all widths except the stem's.
        stem: ``"imagenet"`` or ``"cifar"``; None uses the published stem.
        stem_width: Channels of the stem; None uses the first of the widths.
        literal: Whether to follow the seed literally: no norm and ReLU after the stem, no bias in
            the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`, and ``stages``; ``se_bias`` defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If there is no network of that depth, `depth` and `widths` differ in length, a
            number is out of range, a name is unknown, or a gate option is refused.

    Reference:
        He et al., Identity Mappings in Deep Residual Networks, arXiv:1603.05027.
    """

    family = "pre-activation SE-ResNet"
    placements = PLACEMENTS
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}
    published: ClassVar[Mapping[int, Plan]] = RESNETS

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        widths: Sequence[int] | None = None,
        *,
        bottleneck: bool | None = None,
        width_factor: int = 1,
        stem: str | None = None,
        stem_width: int | None = None,
        literal: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        chosen = plan(self.family, self.published, depth, widths, bottleneck, stem)
        positive_integer("width_factor", width_factor)
        boolean("literal", literal)
        one_of("stem", chosen.stem, ("imagenet", "cifar"))
        excitations = self._excitations(gates, len(chosen.layers))
        super().__init__(num_classes, in_channels)
        channels = stem_channels(stem_width, chosen.widths)
        self.native_size = 32 if chosen.stem == "cifar" else 224
        self.conv1 = stem_conv(chosen.stem, in_channels, channels)
        self.bn1: nn.Module = nn.Identity()
        self.stem_act: nn.Module = nn.Identity()
        if chosen.stem == "imagenet" and not literal:
            self.bn1, self.stem_act = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.maxpool = max_pool(chosen.stem)
        unit: type[PreActUnit] = PreActBottleneck if chosen.bottleneck else PreActBasicBlock
        stem_reduction = 1 if chosen.stem == "cifar" else 2
        self._step("conv1", "bn1", "stem_act", channels=channels, reduction=stem_reduction)
        for stage, (count, width) in enumerate(zip(chosen.layers, chosen.widths, strict=True)):
            width *= width_factor
            stride = 2 if stage else 1
            layer = stack(unit, count, channels, width, stride, excitations[stage])
            channels = width * unit.expansion
            name = f"layer{stage + 1}"
            self.add_module(name, layer)
            reduction = (1 if chosen.stem == "cifar" else 4) * 2**stage
            entry = () if stage else ("maxpool",)
            ends = ("norm", "act") if stage + 1 == len(chosen.layers) else ()
            self._step(*entry, name, *ends, channels=channels, reduction=reduction)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.global_pool, self.fc = self._head(num_classes, gates, bias=not literal)
        self._finish()


def se_preact_resnet18(num_classes: int = 1000, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-18. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(18, num_classes=num_classes, **options)


def se_preact_resnet34(num_classes: int = 1000, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-34. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(34, num_classes=num_classes, **options)


def se_preact_resnet50(num_classes: int = 1000, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-50. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(50, num_classes=num_classes, **options)


def se_preact_resnet101(num_classes: int = 1000, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-101. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(101, num_classes=num_classes, **options)


def se_preact_resnet152(num_classes: int = 1000, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-152. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(152, num_classes=num_classes, **options)


def se_preact_resnet20(num_classes: int = 10, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-20 for 32x32 images. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(20, num_classes=num_classes, **options)


def se_preact_resnet32(num_classes: int = 10, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-32 for 32x32 images. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(32, num_classes=num_classes, **options)


def se_preact_resnet56(num_classes: int = 10, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-56 for 32x32 images. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(56, num_classes=num_classes, **options)


def se_preact_resnet110(num_classes: int = 10, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-110 for 32x32 images. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(110, num_classes=num_classes, **options)


def se_preact_resnet164(num_classes: int = 10, **options: Any) -> SEPreActResNet:
    """Pre-activation SE-ResNet-164 for 32x32 images. Options as in :class:`SEPreActResNet`."""
    return SEPreActResNet(164, num_classes=num_classes, **options)
