"""LightningModules: the training logic, and one thin class per family."""

from se_lightning.modules.classifier import ImageClassifier
from se_lightning.modules.convnets import (
    SEBNInceptionModule,
    SEDenseNetModule,
    SEInceptionResNetV2Module,
    SEInceptionV3Module,
    SEMobileNetModule,
    SENestedModule,
    SEShuffleNetModule,
    SESimpleModule,
    SEVGG16BNModule,
)
from se_lightning.modules.foreign import TimmModule, TorchvisionModule
from se_lightning.modules.resnets import (
    SENet154Module,
    SEPreActResNetModule,
    SEResNetModule,
    SEResNeXtModule,
    SEShakeShakeModule,
    SEWideResNetModule,
)

__all__ = [
    "ImageClassifier",
    "SEBNInceptionModule",
    "SEDenseNetModule",
    "SEInceptionResNetV2Module",
    "SEInceptionV3Module",
    "SEMobileNetModule",
    "SENestedModule",
    "SENet154Module",
    "SEPreActResNetModule",
    "SEResNeXtModule",
    "SEResNetModule",
    "SEShakeShakeModule",
    "SEShuffleNetModule",
    "SESimpleModule",
    "SEVGG16BNModule",
    "SEWideResNetModule",
    "TimmModule",
    "TorchvisionModule",
]
