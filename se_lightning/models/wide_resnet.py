"""Wide SE-ResNet, for CIFAR."""

from typing import Any, Unpack

from se_lightning.arguments import positive_integer
from se_lightning.models.layers.options import ResidualGateOptions
from se_lightning.models.preact_resnet import SEPreActResNet

__all__ = ["SEWideResNet", "se_wrn16_8", "se_wrn28_10", "se_wrn40_4"]


class SEWideResNet(SEPreActResNet):
    """Wide ResNet for small images with a gate at the end of each residual branch.

    Args:
        depth: 6n + 4: three stages of n units of two convolutions.
        width_factor: Factor k; the stages are 16k, 32k and 64k wide.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`, and ``stages``; ``se_bias`` defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If `depth` is not 6n + 4, a number is not positive, or a gate option is refused.

    Reference:
        Zagoruyko and Komodakis, arXiv:1605.07146; Hu et al., arXiv:1709.01507, Tables 4 and 5.
    """

    family = "wide SE-ResNet"

    def __init__(
        self,
        depth: int = 16,
        width_factor: int = 8,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        positive_integer("depth", depth)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"`depth` (={depth}) of a wide ResNet must be 6n + 4: 10, 16, 22, ...")
        super().__init__(
            [(depth - 4) // 6] * 3,
            (16, 32, 64),
            width_factor=width_factor,
            stem="cifar",
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )


def se_wrn16_8(num_classes: int = 10, **options: Any) -> SEWideResNet:
    """SE-WRN-16-8 for 32x32 images. Options as in :class:`SEWideResNet`."""
    return SEWideResNet(16, 8, num_classes=num_classes, **options)


def se_wrn28_10(num_classes: int = 10, **options: Any) -> SEWideResNet:
    """SE-WRN-28-10 for 32x32 images. Options as in :class:`SEWideResNet`."""
    return SEWideResNet(28, 10, num_classes=num_classes, **options)


def se_wrn40_4(num_classes: int = 10, **options: Any) -> SEWideResNet:
    """SE-WRN-40-4 for 32x32 images. Options as in :class:`SEWideResNet`."""
    return SEWideResNet(40, 4, num_classes=num_classes, **options)
