"""Image files in one folder per class."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

from se_lightning.data.files.datamodule import FileDataModule, FileOptions
from se_lightning.data.files.sources import Source, folder_sources
from se_lightning.data.identity import digest

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(FileDataModule):
    """Image files in one folder per class, already split or split here.

    See :func:`se_lightning.data.files.sources.folder_sources` for the layouts. Images are rotated
    according to their EXIF orientation. Checkpoints contain the class names and a digest of the
    images of each split; a run resumes on the same ones only.

    Args:
        root: Folder of the splits, of the classes, or of shards.
        val_fraction: Probability that an image is used for validation, if ``root`` has no splits.
        test_fraction: The same for the test set; 0 to test on the validation set.
        split_seed: Seed of that split, which depends on the path of each image below ``root`` only.
        **options: See :class:`se_lightning.data.files.datamodule.FileDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` has another layout.
        FileNotFoundError: If ``root`` does not exist.
    """

    upright = True
    defaults: ClassVar[FileOptions] = {}

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
        self.root = Path(root).expanduser()
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed = split_seed
        self._split_by = "path"

    @cached_property
    def _found(self) -> tuple[dict[str, Source], tuple[str, ...]]:
        return folder_sources(
            self.root,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
            split_by=self._split_by,
        )

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the class folders, sorted."""
        return self._found[1]

    def find(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``."""
        return self._found[0][split]

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Return the number of images of a split, and digests of their classes and paths."""
        hashes = self.source(split).path_hashes()
        paths = {} if hashes is None else {"paths": digest(hashes)}
        return super().fingerprint(split) | paths

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return super().state_dict() | {"split_by": self._split_by}

    def expect(self, state: Mapping[str, Any], *, strict: bool, remedy: str = "") -> None:
        """Split as the run did, and compare the data with its data.

        Raises:
            ValueError: If the state is damaged.
            MisconfigurationException: If the data differ.
        """
        split_by = state.get("split_by", "position")
        if split_by not in ("path", "position"):
            raise ValueError(
                f"The checkpoint's `split_by` (={split_by!r}) is unknown. Use another checkpoint."
            )
        if split_by != self._split_by:
            self._split_by = split_by
            vars(self).pop("_found", None)
            self._sources, self._fingerprints = {}, {}
        super().expect(state, strict=strict, remedy=remedy)

    def _splits_found(self) -> Sequence[str]:
        return tuple(self._found[0]) if "_found" in vars(self) else ()
