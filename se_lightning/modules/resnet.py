"""LightningModules of SE-ResNet and SE-ResNeXt."""

from typing import Any, Unpack

from torch import nn

from se_lightning import models
from se_lightning.modules.classifier import ImageClassifier, TrainingOptions

__all__ = ["SEResNeXtModule", "SEResNetModule"]


def _backbone(name: str, stem: str | None, **options: Any) -> nn.Module:
    """Build a member of a family; an unknown one is refused with those that there are."""
    if name not in models.list_models():
        family = name.rstrip("0123456789xd_-")
        members = [
            known for known in models.list_models() if known.rstrip("0123456789xd_") == family
        ]
        raise ValueError(f"There is no {name}; there are: {', '.join(members)}.")
    return models.create_model(name, **options, **({} if stem is None else {"stem": stem}))


class SEResNetModule(ImageClassifier):
    """SE-ResNet: 18, 34, 50, 101, 152 layers, and for small images 20, 32, 56, 110.

    Args:
        depth: number of layers.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        ratio: reduction ratio r of the gates, at least 1; hidden width ``max(1, C // r)``.
        gate: ``"channel"``, or ``"none"`` for the plain ResNet.
        se_bias: whether the gates' layers have biases.
        divisor: round the gates' hidden widths to a multiple; 1 keeps them exact.
        stem: ``"imagenet"`` or ``"cifar"``; None takes the member's own.
        **training: label_smoothing, decay_norm_bias, channels_last, optimizer, lr_scheduler, as
            in :class:`ImageClassifier`.

    Raises:
        ValueError: naming the argument that does not fit.

    Example:
        >>> SEResNetModule(depth=20, ratio=4, num_classes=10).backbone.num_features
        64
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        ratio: float = 16,
        gate: str = "channel",
        se_bias: bool = True,
        divisor: int = 1,
        stem: str | None = None,
        **training: Unpack[TrainingOptions],
    ) -> None:
        backbone = _backbone(
            f"se_resnet{depth}",
            stem,
            num_classes=num_classes,
            in_channels=in_channels,
            ratio=ratio,
            gate=gate,
            se_bias=se_bias,
            divisor=divisor,
        )
        super().__init__(backbone, num_classes, **training)


class SEResNeXtModule(ImageClassifier):
    """SE-ResNeXt: 50 and 101 layers with 32 groups of width 4.

    Args:
        depth: number of layers.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        ratio: reduction ratio r of the gates, at least 1; hidden width ``max(1, C // r)``.
        gate: ``"channel"``, or ``"none"`` for the plain ResNeXt.
        se_bias: whether the gates' layers have biases.
        divisor: round the gates' hidden widths to a multiple; 1 keeps them exact.
        stem: ``"imagenet"`` or ``"cifar"``; None takes the member's own.
        cardinality: number of groups of the 3x3 convolutions.
        group_width: channels of a group in the first stage.
        **training: label_smoothing, decay_norm_bias, channels_last, optimizer, lr_scheduler, as
            in :class:`ImageClassifier`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        ratio: float = 16,
        gate: str = "channel",
        se_bias: bool = True,
        divisor: int = 1,
        stem: str | None = None,
        cardinality: int = 32,
        group_width: int = 4,
        **training: Unpack[TrainingOptions],
    ) -> None:
        backbone = _backbone(
            f"se_resnext{depth}_{cardinality}x{group_width}d",
            stem,
            num_classes=num_classes,
            in_channels=in_channels,
            ratio=ratio,
            gate=gate,
            se_bias=se_bias,
            divisor=divisor,
        )
        super().__init__(backbone, num_classes, **training)
