"""SE-ResNet and SE-ResNeXt, for ImageNet and for CIFAR."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from se_lightning.models.gates import Excitation, warn_of_single_units

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
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False
    )


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def _tail(x: Tensor, norm: nn.Module, se: nn.Module, shortcut: Tensor, act: nn.Module) -> Tensor:
    """End a residual block: norm, gate, shortcut, ReLU. The one place for a fused operator."""
    return act(se(norm(x)) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the second followed by the gate.

    Shape:
        (N, in_channels, H, W) to (N, width, H / stride, W / stride).
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        excitation: Excitation,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        if groups != 1 or group_width != 64:
            raise ValueError(
                f"BasicBlock has no groups (groups={groups}, group_width={group_width}); "
                "take a depth with bottlenecks (50 and more)."
            )
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = excitation.build(width)
        self.downsample = _projection(in_channels, width, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return _tail(self.conv2(out), self.bn2, self.se, shortcut, self.act)


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (with the stride and the groups), 1x1 up, followed by the gate.

    The stride is in the 3x3, as in torchvision and timm; the paper's Caffe release has it in the
    first 1x1 (https://github.com/hujie-frank/SENet).

    Shape:
        (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        excitation: Excitation,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        inner = width * group_width // 64 * groups
        out_channels = width * self.expansion
        self.conv1 = _conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se = excitation.build(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return _tail(self.conv3(out), self.bn3, self.se, shortcut, self.act)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class SEResNet(nn.Module):
    """ResNet or ResNeXt with a gate at the end of each residual branch.

    Parameter names are torchvision's, and the gates' are timm's, so that state dicts of both load.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: number of blocks of each stage.
        widths: width of each stage before the block's expansion.
        num_classes: K.
        in_channels: channels of the images.
        stem: ``"imagenet"`` (7x7 with stride 2, then max-pool with stride 2) or ``"cifar"``
            (3x3 with stride 1).
        groups: cardinality of the 3x3 convolutions.
        group_width: width of a group at a stage width of 64 (ResNeXt's d).
        ratio: reduction ratio r of the gates, at least 1; hidden width ``max(1, C // r)``.
        gate: ``"channel"``, or ``"none"`` for the plain twin.
        se_bias: whether the gates' layers have biases.
        divisor: round the gates' hidden widths to a multiple; 1 keeps them exact.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: naming the argument that does not fit.

    Reference:
        Hu et al., arXiv:1709.01507; He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        groups: int = 1,
        group_width: int = 64,
        ratio: float = 16,
        gate: str = "channel",
        se_bias: bool = True,
        divisor: int = 1,
    ) -> None:
        super().__init__()
        if len(layers) != len(widths):
            raise ValueError(f"`layers` (={layers}) and `widths` (={widths}) differ in length.")
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` (={value!r}) must be a whole number of at least 1.")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"`stem` (={stem!r}) must be one of imagenet, cifar.")
        excitation = Excitation(ratio, gate, se_bias, divisor)

        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv3x3(in_channels, channels)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

        self.stages = [f"layer{number}" for number in range(1, len(layers) + 1)]
        for number, (name, depth, width) in enumerate(
            zip(self.stages, layers, widths, strict=True)
        ):
            blocks = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(block(channels, width, stride, excitation, groups, group_width))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))

        self.num_features = channels
        self.reduction = (4 if stem == "imagenet" else 1) * 2 ** (len(layers) - 1)
        self.fc: nn.Module = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        warn_of_single_units(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, (N, num_features, H / reduction, W / reduction)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn a feature map into logits (N, K), or pooled features (N, num_features)."""
        x = torch.flatten(x.mean((2, 3)), 1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the pooled features."""
        device, dtype = self.conv1.weight.device, self.conv1.weight.dtype
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
            if num_classes
            else nn.Identity()
        )


def se_resnet18(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-18: 11,778,592 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, **options)


def se_resnet34(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-34: 21,958,868 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes, **options)


def se_resnet50(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-50: 28,088,024 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, **options)


def se_resnet101(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-101: 49,326,872 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(Bottleneck, (3, 4, 23, 3), num_classes=num_classes, **options)


def se_resnet152(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNet-152: 66,821,848 parameters. Options as in :class:`SEResNet`."""
    return SEResNet(Bottleneck, (3, 8, 36, 3), num_classes=num_classes, **options)


def se_resnext50_32x4d(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNeXt-50 32x4d: 27,559,896 parameters. Options as in :class:`SEResNet`."""
    options = {"groups": 32, "group_width": 4, **options}
    return SEResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, **options)


def se_resnext101_32x4d(num_classes: int = 1000, **options: Any) -> SEResNet:
    """SE-ResNeXt-101 32x4d: 48,955,416 parameters. Options as in :class:`SEResNet`."""
    options = {"groups": 32, "group_width": 4, **options}
    return SEResNet(Bottleneck, (3, 4, 23, 3), num_classes=num_classes, **options)


def _cifar(depth: int, num_classes: int, options: dict[str, Any]) -> SEResNet:
    """Build the CIFAR form: three stages of (depth - 2) / 6 basic blocks, 16 to 64 wide."""
    blocks = (depth - 2) // 6
    options = {"stem": "cifar", **options}
    return SEResNet(BasicBlock, (blocks,) * 3, (16, 32, 64), num_classes=num_classes, **options)


def se_resnet20(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-20 for 32x32 images: 274,847 parameters. Options as in :class:`SEResNet`."""
    return _cifar(20, num_classes, options)


def se_resnet32(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-32 for 32x32 images: 470,861 parameters. Options as in :class:`SEResNet`."""
    return _cifar(32, num_classes, options)


def se_resnet56(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-56 for 32x32 images: 862,889 parameters. Options as in :class:`SEResNet`."""
    return _cifar(56, num_classes, options)


def se_resnet110(num_classes: int = 10, **options: Any) -> SEResNet:
    """SE-ResNet-110 for 32x32 images: 1,744,952 parameters. Options as in :class:`SEResNet`."""
    return _cifar(110, num_classes, options)
