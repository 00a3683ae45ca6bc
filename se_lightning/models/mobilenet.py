"""SE-MobileNet (v1)."""

import math
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.arguments import positive_integer
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, StagedGateOptions
from se_lightning.models.layers.residual import conv1x1

__all__ = ["SEMobileNet", "se_mobilenet"]

# Output channels of each block, by stage; the first block of stages 2 to 5 has stride 2.
_STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class SeparableBlock(nn.Module):
    """Depthwise 3x3, norm, ReLU6, pointwise 1x1, norm, ReLU6, gate.

    The depthwise convolution has ``multiplier`` outputs per channel.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        excitation: Excitation,
        multiplier: int = 1,
    ) -> None:
        super().__init__()
        inner = in_channels * multiplier
        self.conv_dw = nn.Conv2d(
            in_channels,
            inner,
            3,
            stride=stride,
            padding=1,
            groups=in_channels,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv_pw = conv1x1(inner, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.se = excitation.build(out_channels)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        return self.se(self.act(self.bn2(self.conv_pw(x))))


class SEMobileNet(ImageNetwork):
    """MobileNet with a gate after each of its 13 pointwise convolutions (after norm and ReLU6).

    The paper does not state the placement; this one has the 4.7 million parameters of its
    Table 3. Parameter names are timm's.

    Args:
        alpha: Width multiplier; each width is ``int(alpha * width)``.
        depth_multiplier: Outputs of each depthwise convolution per channel.
        dropout: Dropout rate before the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement, and ``stages`` (1 to 5, by
            resolution); ``se_bias`` defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If `alpha` is below 1/32, another number is out of range, or a gate option is
            refused.

    Reference:
        Howard et al., arXiv:1704.04861; titu1994/keras-squeeze-excite-network, se_mobilenets.py.
    """

    family = "SE-MobileNet"
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}
    classifier_name = "classifier"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        depth_multiplier: int = 1,
        dropout: float = 1e-3,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        numeric = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not numeric or not 1 / 32 <= alpha < math.inf:
            raise ValueError(
                f"`alpha` (={alpha!r}) must be a number of at least 1/32: the width multiplier."
            )
        positive_integer("depth_multiplier", depth_multiplier)
        excitations = self._excitations(gates, len(_STAGES))
        super().__init__(num_classes, in_channels, dropout=dropout)
        channels = int(32 * alpha)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)
        self._step("conv_stem", "bn1", "act", channels=channels, reduction=2)
        stages = []
        for stage, (widths, excitation) in enumerate(zip(_STAGES, excitations, strict=True)):
            blocks = []
            for index, width in enumerate(widths):
                stride = 2 if stage > 0 and index == 0 else 1
                scaled = int(width * alpha)
                block = SeparableBlock(channels, scaled, stride, excitation, depth_multiplier)
                blocks.append(block)
                channels = scaled
            stages.append(nn.Sequential(*blocks))
            self._step(f"blocks.{stage}", channels=channels, reduction=2 * 2**stage)
        self.blocks = nn.Sequential(*stages)
        self.global_pool, self.classifier = self._head(num_classes, gates)
        self._finish()


def se_mobilenet(num_classes: int = 1000, **options: Any) -> SEMobileNet:
    """SE-MobileNet 1.0-224: 4,711,720 parameters. Options as in :class:`SEMobileNet`."""
    return SEMobileNet(num_classes=num_classes, **options)
