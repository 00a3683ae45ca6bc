"""ImageNet, as folders, original tar files or shards."""

from pathlib import Path
from typing import ClassVar, Unpack

from se_lightning.data.files.datamodule import FileDataModule, FileOptions
from se_lightning.data.files.sources import Source, imagenet_class_names, imagenet_sources

__all__ = ["ImageNetDataModule"]


class ImageNetDataModule(FileDataModule):
    """ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images of 1000 classes.

    ``root`` contains class folders as in torchvision, or the original tar files, or shards written
    by ``task=shard``; see :func:`se_lightning.data.files.sources.imagenet_sources`. The labels of
    the test images are not public, so the 50,000 also serve as test set, as in the papers. EXIF
    orientation is ignored, as in torchvision and timm.

    Args:
        root: Folder of the files.
        **options: See :class:`se_lightning.data.files.datamodule.FileDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` has another layout.
        FileNotFoundError: If ``root`` does not exist.
    """

    upright = False
    defaults: ClassVar[FileOptions] = {}

    def __init__(self, root: str = "data/imagenet", **options: Unpack[FileOptions]) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The 1000 names, in the standard order."""
        return imagenet_class_names()

    def find(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``."""
        if split == "test":
            return self.source("val")
        return imagenet_sources(self.root, (split,))[split]
