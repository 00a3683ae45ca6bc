"""Image files as a data set of batches, and the handling of unreadable files."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from se_lightning.data.dataset import ImageDataset, Loader
from se_lightning.data.files.crops import CenterCrop, RandomResizedCrop
from se_lightning.data.files.decode import BadImage
from se_lightning.data.files.sources import Source
from se_lightning.data.transforms.on_device import Finish, ImageBatch, unreadable
from se_lightning.data.transforms.per_image import SampleTransforms

__all__ = ["BadFiles", "FileLoader", "ImageFiles"]

log = logging.getLogger(__name__)
BAD_FILES = "bad_files.txt"


class ImageFiles(ImageDataset):
    """Image files; a batch contains the readable ones.

    Args:
        source: Source of the files.
        view: Decodes and crops a file.
        finish: Turns bytes into the network's input.
        transforms: Transforms of each image, for training; None for evaluation.

    Shape:
        ``self[epoch, keys]`` unpacks to ((B, 3, H, W) float32, (B,) int64).
    """

    def __init__(
        self,
        source: Source,
        view: RandomResizedCrop | CenterCrop,
        finish: Finish,
        transforms: SampleTransforms | None = None,
    ) -> None:
        super().__init__(augmented=transforms is not None)
        self.source, self.view, self.finish, self.transforms = source, view, finish, transforms

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, epoch: int, keys: np.ndarray) -> ImageBatch:
        """Return the samples ``keys`` (N,), augmented as in an epoch."""
        pixels: list[Tensor] = []
        good: list[int] = []
        bad = []
        for position, draws in enumerate(self.view.draws(epoch, keys)):
            index = int(keys[position]) % len(self)
            try:
                image = self.view(self.source.read(index), epoch, draws)
                pixels.append(image.permute(1, 2, 0))
                good.append(position)
            except (OSError, BadImage, MemoryError) as error:
                name = self.source.name(index)
                reason = str(error).removeprefix(f"{name} cannot be read: ").rstrip(".")
                bad.append((name, reason or "too large for the memory"))
        first, keys = (int(keys[0]) if len(keys) else None), keys[good]
        images = self._stack(pixels, self.view.side(epoch))
        if self.transforms is not None:
            images = self.transforms(images, epoch, keys)
        labels = self.source.labels[keys % len(self)]
        return ImageBatch(images, labels, self.finish, epoch, keys, first, bad)

    def _stack(self, pixels: list[Tensor], side: int) -> Tensor:
        """Stack images (H, W, 3), in a worker into memory shared with the main process."""
        empty = torch.empty(0, side, side, 3, dtype=torch.uint8)
        batch = default_collate(pixels) if pixels else empty
        return batch.permute(0, 3, 1, 2)


class BadFiles:
    """Record of unreadable files: the first one stops the run, or all are listed.

    Args:
        on_error: ``"stop"`` or ``"skip"``.

    Raises:
        ValueError: If ``on_error`` is neither.
    """

    def __init__(self, on_error: str) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"`on_error` (={on_error!r}) must be 'stop' or 'skip'.")
        self.skip = on_error == "skip"
        self._new: dict[str, str] = {}
        self._known: set[str] = set()

    def take(self, batch: ImageBatch, *, train: bool) -> None:
        """Record the bad files of a batch.

        Raises:
            ValueError: If there are any, unless they are skipped; or if no file of a training
                batch can be read.
        """
        if not batch.bad:
            return
        if not self.skip:
            raise unreadable(batch.bad)
        name, reason = batch.bad[0]
        if train and not len(batch.keys):
            raise ValueError(
                f"None of the {len(batch.bad)} files of a batch can be read; the first is {name}: "
                f"{reason}."
            )
        self._new |= {name: reason for name, reason in batch.bad if name not in self._known}

    def write(self, folder: Path) -> None:
        """Append new bad files to ``bad_files.txt``, with a warning."""
        if not self._new:
            return
        path = folder / BAD_FILES
        lines = [
            f"{name}: {reason}".replace("\n", "\\n") + "\n"
            for name, reason in sorted(self._new.items())
        ]
        folder.mkdir(parents=True, exist_ok=True)
        # In a single write, because the ranks share the file. Names that are not UTF-8 are written
        # as they are, for programs that read the list.
        with path.open("ab") as file:
            file.write(os.fsencode("".join(lines)))
        log.warning("%d files cannot be read and were skipped; see %s.", len(lines), path)
        self._known |= set(self._new)
        self._new = {}


class FileLoader(Loader):
    """Loader that lists unreadable files at the end of its epoch.

    Args:
        dataset: Image files.
        bad_files: Records the unreadable files.
        folder: Folder of the list.
        **options: Options of Loader.
    """

    def __init__(
        self,
        dataset: ImageFiles,
        *,
        bad_files: BadFiles,
        folder: Path,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        self.bad_files, self.folder = bad_files, folder

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]
        train = self.dataset.augmented  # type: ignore[attr-defined]
        read = 0
        try:
            for batch in super().__iter__():
                self.bad_files.take(batch, train=train)
                read += len(batch.keys)
                batch.bad = ()
                yield batch
        finally:
            self.bad_files.write(self.folder)
        # Other ranks may have read some; ImageClassifier counts those of all ranks.
        alone = self.order is None or self.order.num_replicas == 1
        if alone and not read and len(self):
            raise ValueError(
                f"None of the {len(self.dataset)} files of a split can be read; see "  # type: ignore[arg-type]
                f"{self.folder / BAD_FILES}."
            )
