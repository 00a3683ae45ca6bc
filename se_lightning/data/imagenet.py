"""ImageNet, in any of the forms that it comes in."""

from pathlib import Path
from typing import Unpack

from se_lightning.data.files.datamodule import FileDataModule, FileOptions
from se_lightning.data.files.sources import Source, imagenet_class_names, imagenet_sources

__all__ = ["ImageNetDataModule"]


class ImageNetDataModule(FileDataModule):
    """ImageNet (ILSVRC 2012): 1,281,167 images for training, 50,000 for validation, 1000 classes.

    ``root`` holds class folders as torchvision has them, or the original tar files, or shards
    (``task=shard`` makes them); see :func:`se_lightning.data.files.sources.imagenet_sources`. The
    test images' labels are not public: the test, too, is on the 50,000, as in the papers. Images
    are read as torchvision and timm do, whatever orientation their EXIF data give.

    Args:
        root: folder of the files.
        **options: see :class:`se_lightning.data.files.datamodule.FileDataModule`.

    Raises:
        ValueError: naming the argument that does not fit, or saying what ``root`` has instead.
        FileNotFoundError: if there is no ``root``.
    """

    upright = False

    def __init__(self, root: str = "data/imagenet", **options: Unpack[FileOptions]) -> None:
        super().__init__(**options)
        self.root = Path(root)

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The 1000 names, in the standard order."""
        return imagenet_class_names()

    def find(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``."""
        if split == "test":
            return self.source("val")
        return imagenet_sources(self.root, (split,))[split]
