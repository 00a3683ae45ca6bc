"""Anybody's images: a folder a class."""

from functools import cached_property
from pathlib import Path
from typing import Unpack

from se_lightning.data.files.datamodule import FileDataModule, FileOptions
from se_lightning.data.files.sources import Source, folder_sources

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(FileDataModule):
    """Anybody's images, a folder a class: ``root/train/<class>/*`` and so on, or one set to cut.

    See :func:`se_lightning.data.files.sources.folder_sources` for the layouts. Images are turned as
    their EXIF data say.

    Args:
        root: folder of the splits, of the classes, or of shards.
        val_fraction: of each class, where the cut is made here.
        test_fraction: of each class, where the cut is made here; 0 tests on validation.
        split_seed: of that cut.
        **options: see :class:`se_lightning.data.files.datamodule.FileDataModule`.

    Raises:
        ValueError: naming the argument that does not fit, or saying what ``root`` has instead.
        FileNotFoundError: if there is no ``root``.
    """

    upright = True

    def __init__(
        self,
        root: str = "data/images",
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        **options: Unpack[FileOptions],
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed = split_seed

    @cached_property
    def _found(self) -> tuple[dict[str, Source], tuple[str, ...]]:
        return folder_sources(
            self.root,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
        )

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the class folders, sorted."""
        return self._found[1]

    def find(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``."""
        return self._found[0][split]
