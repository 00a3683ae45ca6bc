"""Datamodules: one file per data set, with shared sample order, loading and augmentation."""

import importlib
import pkgutil

from se_lightning.data.base import ImageDataModule
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


def find_datamodule(name: str) -> type[ImageDataModule] | None:
    """Return the datamodule class with this name, as checkpoints record it; None if unknown.

    Only the modules of this folder are searched, so that a checkpoint cannot import other code.
    A new data set is found without being listed here.
    """
    for path in (f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)):
        kind = vars(importlib.import_module(path)).get(name)
        if isinstance(kind, type) and issubclass(kind, ImageDataModule) and kind.__module__ == path:
            return None if kind is ImageDataModule else kind
    return None
