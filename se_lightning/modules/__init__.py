"""LightningModules: the training logic, and one thin class per family."""

from se_lightning.modules.classifier import ImageClassifier
from se_lightning.modules.resnet import SEResNetModule, SEResNeXtModule

__all__ = ["ImageClassifier", "SEResNeXtModule", "SEResNetModule"]
