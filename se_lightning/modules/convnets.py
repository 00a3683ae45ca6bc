"""LightningModules of the other families: DenseNet, the Inceptions, VGG, the small nets."""

from collections.abc import Sequence
from typing import Unpack

from se_lightning import models
from se_lightning.modules.classifier import ImageClassifier
from se_lightning.modules.options import Options, ResidualOptions, StagedOptions, split

__all__ = [
    "SEBNInceptionModule",
    "SEDenseNetModule",
    "SEInceptionResNetV2Module",
    "SEInceptionV3Module",
    "SEMobileNetModule",
    "SENestedModule",
    "SEShuffleNetModule",
    "SESimpleModule",
    "SEVGG16BNModule",
]


class SEDenseNetModule(ImageClassifier):
    """SE-DenseNet: 121, 161, 169, 201, 264 layers; for small images any (L, k), BC or not.

    Args:
        depth: number of layers, or a list: dense layers of each block.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        growth_rate: k; None takes the member's own (12 for others).
        bottleneck: a 1x1 to 4k before each 3x3.
        compression: fraction of the channels that a transition keeps; None: 0.5 with bottlenecks.
        init_features: channels of the stem; None takes the member's own.
        stem: ``"imagenet"`` or ``"cifar"``; None takes the member's own.
        gates_after: ``"both"``, ``"block"`` or ``"transition"``.
        **options: the gates' (ratio, gate, stages, squeeze, gate_activation, merge, se_bias,
            divisor; see :class:`se_lightning.models.Excitation`) and the training's (see
            :class:`ImageClassifier`).

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 121,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        growth_rate: int | None = None,
        bottleneck: bool = True,
        compression: float | None = None,
        init_features: int | None = None,
        stem: str | None = None,
        gates_after: str = "both",
        **options: Unpack[StagedOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEDenseNet(
            depth,
            growth_rate,
            bottleneck=bottleneck,
            compression=compression,
            init_features=init_features,
            stem=stem,
            gates_after=gates_after,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SEInceptionV3Module(ImageClassifier):
    """SE-Inception-v3, for images of 299x299.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        aux: train an auxiliary classifier too, whose loss counts 0.4.
        dropout: fraction of the pooled features that is dropped in training.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        aux: bool = False,
        dropout: float = 0.5,
        **options: Unpack[StagedOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEInceptionV3(
            aux=aux, dropout=dropout, num_classes=num_classes, in_channels=in_channels, **gates
        )
        super().__init__(network, num_classes, **training)


class SEInceptionResNetV2Module(ImageClassifier):
    """SE-Inception-ResNet-v2, for images of 299x299.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        dropout: fraction of the pooled features that is dropped in training.
        **options: as in :class:`SEDenseNetModule`, and placement (all but "inner").

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        dropout: float = 0.2,
        **options: Unpack[ResidualOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEInceptionResNetV2(
            dropout=dropout, num_classes=num_classes, in_channels=in_channels, **gates
        )
        super().__init__(network, num_classes, **training)


class SEBNInceptionModule(ImageClassifier):
    """SE-BN-Inception.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self, num_classes: int = 10, *, in_channels: int = 3, **options: Unpack[StagedOptions]
    ) -> None:
        training, gates = split(options)
        network = models.SEBNInception(num_classes=num_classes, in_channels=in_channels, **gates)
        super().__init__(network, num_classes, **training)


class SEVGG16BNModule(ImageClassifier):
    """SE-VGG-16 with batch normalisation.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        dropout: fraction of the two hidden layers' units that is dropped in training.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        dropout: float = 0.5,
        **options: Unpack[StagedOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEVGG16BN(
            dropout=dropout, num_classes=num_classes, in_channels=in_channels, **gates
        )
        super().__init__(network, num_classes, **training)


class SEMobileNetModule(ImageClassifier):
    """SE-MobileNet of any width.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        alpha: width multiplier.
        dropout: fraction of the pooled features that is dropped in training.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        alpha: float = 1.0,
        dropout: float = 1e-3,
        **options: Unpack[StagedOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEMobileNet(
            alpha=alpha,
            dropout=dropout,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SEShuffleNetModule(ImageClassifier):
    """SE-ShuffleNet.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        groups: of the 1x1 convolutions: 1, 2, 3, 4 or 8.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        groups: int = 3,
        **options: Unpack[StagedOptions],
    ) -> None:
        training, gates = split(options)
        network = models.SEShuffleNet(
            groups=groups, num_classes=num_classes, in_channels=in_channels, **gates
        )
        super().__init__(network, num_classes, **training)


class SESimpleModule(ImageClassifier):
    """The Keras MNIST seed: one gate.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        image_size: side of the images, pixels.
        residual: add the gate's input to its output.
        **options: as in :class:`SEDenseNetModule`, but stages.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        residual: bool = False,
        **options: Unpack[Options],
    ) -> None:
        training, gates = split(options)
        network = models.SESimple(
            residual=residual,
            image_size=image_size,
            num_classes=num_classes,
            in_channels=in_channels,
            **gates,
        )
        super().__init__(network, num_classes, **training)


class SENestedModule(ImageClassifier):
    """The PyTorch MNIST seed's form: gates on whole residual units.

    Args:
        num_classes: K, at least 2.
        in_channels: channels of the images.
        **options: as in :class:`SEDenseNetModule`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self, num_classes: int = 10, *, in_channels: int = 1, **options: Unpack[StagedOptions]
    ) -> None:
        training, gates = split(options)
        network = models.SENested(num_classes=num_classes, in_channels=in_channels, **gates)
        super().__init__(network, num_classes, **training)
