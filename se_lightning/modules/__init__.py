"""LightningModules: the training logic, and one class per family of networks."""

from se_lightning.modules import families
from se_lightning.modules.classifier import ImageClassifier
from se_lightning.modules.families import *  # noqa: F403
from se_lightning.modules.foreign import TimmModule, TorchvisionModule

__all__ = ["ImageClassifier", "TimmModule", "TorchvisionModule"]
__all__ += families.__all__
