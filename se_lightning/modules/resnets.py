"""LightningModules of the residual families."""

from collections.abc import Sequence
from typing import Unpack

from se_lightning import models
from se_lightning.modules.classifier import ImageClassifier
from se_lightning.modules.options import ResidualOptions, split

__all__ = [
    "SENet154Module",
    "SEPreActResNetModule",
    "SEResNeXtModule",
    "SEResNetModule",
    "SEShakeShakeModule",
    "SEWideResNetModule",
]


class SEResNetModule(ImageClassifier):
    """SE-ResNet: 18, 34, 50, 101, 152 layers; 20, 32, 56, 110, 164 for small images; or any other.

    Args:
        depth: number of layers of a published member, or a list: blocks of each stage.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        widths: width of each stage; None takes the member's own.
        bottleneck: kind of block; None takes the member's own.
        width_factor: k, multiplies all widths but the stem's.
        stem: ``"imagenet"``, ``"deep"`` or ``"cifar"``; None takes the member's own.
        stride_in: ``"3x3"``, or ``"1x1"`` as in the paper's Caffe release.
        ceil_pool: the max-pool of the same release.
        relu_before_gate: a ReLU between the last norm and the gate, as timm's legacy_seresnet18
            and 34 have it.
        **options: the gates' (ratio, gate, placement, stages, squeeze, gate_activation, merge,
            se_bias, divisor; see :class:`se_lightning.models.Excitation`) and the training's
            (see :class:`ImageClassifier`).

    Raises:
        ValueError: naming the argument that does not fit.

    Example:
        >>> SEResNetModule(depth=20, ratio=4, num_classes=10).backbone.num_features
        64
        >>> SEResNetModule(depth=[1, 2], widths=[8, 24], ratio=4).backbone.num_features
        24
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        widths: Sequence[int] | None = None,
        bottleneck: bool | None = None,
        width_factor: int = 1,
        stem: str | None = None,
        stride_in: str = "3x3",
        ceil_pool: bool = False,
        relu_before_gate: bool = False,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEResNet(
            depth,
            widths,
            bottleneck=bottleneck,
            width_factor=width_factor,
            stem=stem,
            stride_in=stride_in,
            ceil_pool=ceil_pool,
            relu_before_gate=relu_before_gate,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SEResNeXtModule(ImageClassifier):
    """SE-ResNeXt: 50, 101, 152 layers, 29 for small images, or any other; any groups.

    Args:
        depth: number of layers of a published member, or a list: blocks of each stage.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        cardinality: number of groups of the 3x3 convolutions.
        group_width: channels of a group in the first stage, where that is 64 wide.
        widths: width of each stage; None takes the member's own.
        width_factor: k, multiplies all widths but the stem's.
        stem: ``"imagenet"``, ``"deep"`` or ``"cifar"``; None takes the member's own.
        ceil_pool: the max-pool of the paper's Caffe release.
        **options: as in :class:`SEResNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        cardinality: int = 32,
        group_width: int = 4,
        widths: Sequence[int] | None = None,
        width_factor: int = 1,
        stem: str | None = None,
        ceil_pool: bool = False,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEResNeXt(
            depth,
            widths,
            cardinality=cardinality,
            group_width=group_width,
            width_factor=width_factor,
            stem=stem,
            ceil_pool=ceil_pool,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SENet154Module(ImageClassifier):
    """SENet-154.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        ceil_pool: the max-pool of the paper's Caffe release.
        dropout: fraction of the pooled features that is dropped in training.
        **options: as in :class:`SEResNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        ceil_pool: bool = False,
        dropout: float = 0.2,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SENet154(
            ceil_pool=ceil_pool,
            dropout=dropout,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SEPreActResNetModule(ImageClassifier):
    """Pre-activation SE-ResNet: 18 to 152 layers, 20 to 164 for small images, or any other.

    Args:
        depth: number of layers of a published member, or a list: units of each stage.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        widths: width of each stage; None takes the member's own.
        bottleneck: kind of unit; None takes the member's own.
        width_factor: k, multiplies all widths but the stem's.
        stem: ``"imagenet"`` or ``"cifar"``; None takes the member's own.
        literal: the Keras seed to the letter: no norm after the stem, no bias in the classifier.
        **options: as in :class:`SEResNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        widths: Sequence[int] | None = None,
        bottleneck: bool | None = None,
        width_factor: int = 1,
        stem: str | None = None,
        literal: bool = False,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEPreActResNet(
            depth,
            widths,
            bottleneck=bottleneck,
            width_factor=width_factor,
            stem=stem,
            literal=literal,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SEWideResNetModule(ImageClassifier):
    """SE-WRN for small images: any depth of 6n + 4, any width factor.

    Args:
        depth: number of layers.
        width_factor: k; the stages are 16k, 32k and 64k wide.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        **options: as in :class:`SEResNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int = 16,
        width_factor: int = 8,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEWideResNet(
            depth, width_factor, num_classes=num_classes, in_channels=in_channels, **gates
        )
        super().__init__(network, num_classes, **training)


class SEShakeShakeModule(ImageClassifier):
    """SE-Shake-Shake for small images.

    Args:
        depth: 6n + 2, with cardinality 9n + 2.
        width: of a branch in the first stage; with cardinality, of each group there.
        cardinality: None for branches of two 3x3, a number for grouped bottlenecks.
        backward: ``"shake"`` or ``"even"``: the branches' shares in the gradient.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        **options: as in :class:`SEResNetModule`; there is no placement "inner".

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int = 26,
        width: int = 96,
        num_classes: int = 10,
        *,
        cardinality: int | None = None,
        backward: str = "shake",
        in_channels: int = 3,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEShakeShake(
            depth,
            width,
            cardinality=cardinality,
            backward=backward,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)
