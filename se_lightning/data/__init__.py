"""LightningDataModules, and what lies beneath them."""

from se_lightning.data.digits import DigitsDataModule
from se_lightning.data.fake import FakeDataModule
from se_lightning.data.mnist import MNISTDataModule

__all__ = ["DigitsDataModule", "FakeDataModule", "MNISTDataModule"]
