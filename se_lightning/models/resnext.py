"""SE-ResNeXt and SENet-154."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from se_lightning.models.layers.options import ResidualGateOptions
from se_lightning.models.layers.residual import RESNETS, Plan
from se_lightning.models.resnet import Bottleneck, SEResNet

__all__ = [
    "SENet154",
    "SEResNeXt",
    "se_resnext29_8x64d",
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
    "se_resnext101_64x4d",
    "senet154",
]


class SEResNeXt(SEResNet):
    """ResNeXt with a gate in each residual unit.

    Args:
        depth: 50, 101, 152; 29 for small images; or a list with the blocks of each stage.
        widths: Width of each stage before the block's expansion; None uses the published widths.
        bottleneck: Whether blocks are bottlenecks, which groups require.
        cardinality: Number of groups of the 3x3 convolutions.
        group_width: Width d of a group at a stage width of 64.
        **options: Other options of :class:`SEResNet`.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If :class:`SEResNet` refuses an option.

    Reference:
        Hu et al., arXiv:1709.01507; Xie et al., arXiv:1611.05431.
    """

    family = "SE-ResNeXt"
    published: ClassVar[Mapping[int, Plan]] = {
        29: Plan((3, 3, 3), (64, 128, 256), True, "cifar"),
        **{depth: RESNETS[depth] for depth in (50, 101, 152)},
    }

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        widths: Sequence[int] | None = None,
        *,
        bottleneck: bool = True,
        cardinality: int = 32,
        group_width: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            depth,
            widths,
            bottleneck=bottleneck,
            cardinality=cardinality,
            group_width=group_width,
            **options,
        )


class SENetBottleneck(Bottleneck):
    """Bottleneck with a first 1x1 of half the width, and 3x3 projections where the size shrinks."""

    reduce_first = 2
    projection_kernel = 3


class SENet154(SEResNet):
    """SENet-154, the winner of ILSVRC 2017: a modified SE-ResNeXt-152 64x4d.

    It has three 3x3 stem convolutions, a halved first 1x1, 3x3 projections where the size
    shrinks, and dropout before the classifier.

    Args:
        ceil_pool: Whether the max-pool has no padding and rounds its size up, as in the Caffe
            release.
        dropout: Dropout rate before the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`, and ``stages``; ``se_bias`` defaults to True.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If :class:`SEResNet` refuses an option.

    Reference:
        Hu et al., arXiv:1709.01507, appendix.
    """

    family = "SENet-154"
    bottleneck_block: ClassVar[type[Bottleneck]] = SENetBottleneck

    def __init__(
        self,
        *,
        ceil_pool: bool = False,
        dropout: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        super().__init__(
            152,
            stem="deep",
            cardinality=64,
            group_width=4,
            ceil_pool=ceil_pool,
            dropout=dropout,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )


def se_resnext29_8x64d(num_classes: int = 10, **options: Any) -> SEResNeXt:
    """SE-ResNeXt-29 8x64d for 32x32 images: 34,948,506 parameters. Options: :class:`SEResNeXt`."""
    options = {"cardinality": 8, "group_width": 64, **options}
    return SEResNeXt(29, num_classes=num_classes, **options)


def se_resnext50_32x4d(num_classes: int = 1000, **options: Any) -> SEResNeXt:
    """SE-ResNeXt-50 32x4d: 27,559,896 parameters. Options as in :class:`SEResNeXt`."""
    return SEResNeXt(50, num_classes=num_classes, **options)


def se_resnext101_32x4d(num_classes: int = 1000, **options: Any) -> SEResNeXt:
    """SE-ResNeXt-101 32x4d: 48,955,416 parameters. Options as in :class:`SEResNeXt`."""
    return SEResNeXt(101, num_classes=num_classes, **options)


def se_resnext101_64x4d(num_classes: int = 1000, **options: Any) -> SEResNeXt:
    """SE-ResNeXt-101 64x4d: 88,232,984 parameters. Options as in :class:`SEResNeXt`."""
    options = {"cardinality": 64, **options}
    return SEResNeXt(101, num_classes=num_classes, **options)


def senet154(num_classes: int = 1000, **options: Any) -> SENet154:
    """SENet-154: 115,088,984 parameters. Options as in :class:`SENet154`."""
    return SENet154(num_classes=num_classes, **options)
