"""LightningDataModules, and what lies beneath them."""

from se_lightning.data.cifar import CIFARDataModule
from se_lightning.data.digits import DigitsDataModule
from se_lightning.data.fake import FakeDataModule
from se_lightning.data.image_folder import ImageFolderDataModule
from se_lightning.data.imagenet import ImageNetDataModule
from se_lightning.data.mnist import MNISTDataModule

__all__ = [
    "CIFARDataModule",
    "DigitsDataModule",
    "FakeDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "MNISTDataModule",
]
