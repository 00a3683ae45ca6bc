"""Image files in one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Unpack

from se_lightning.data.files.datamodule import FileDataModule, FileOptions
from se_lightning.data.files.sources import Source, folder_sources

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(FileDataModule):
    """Image files in one folder per class, already split or split here.

    See :func:`se_lightning.data.files.sources.folder_sources` for the layouts. Images are rotated
    according to their EXIF orientation.

    Args:
        root: Folder of the splits, of the classes, or of shards.
        val_fraction: Fraction of each class for validation, if ``root`` has no splits.
        test_fraction: The same for the test set; 0 to test on the validation set.
        split_seed: Seed of that split.
        **options: See :class:`se_lightning.data.files.datamodule.FileDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` has another layout.
        FileNotFoundError: If ``root`` does not exist.
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
