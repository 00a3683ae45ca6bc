"""The base class of datamodules of image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
from torch.utils.data import DataLoader

from se_lightning.arguments import positive_integer
from se_lightning.data.base import ImageDataModule, ImageOptions
from se_lightning.data.dataset import ImageDataset, Loader
from se_lightning.data.files.crops import CenterCrop, RandomResizedCrop
from se_lightning.data.files.dataset import BadFiles, FileLoader, ImageFiles
from se_lightning.data.files.decode import check_interpolation
from se_lightning.data.files.sources import Source
from se_lightning.data.identity import digest
from se_lightning.data.samplers import EvalSampler, TrainSampler

__all__ = ["FileDataModule", "FileOptions"]


class FileOptions(ImageOptions, total=False):
    """The options of every datamodule of image files; see :class:`FileDataModule`."""

    image_size: int
    eval_resize: int | None
    crop_area: Sequence[float]
    crop_aspect: Sequence[float]
    train_sizes: Sequence[Sequence[int]] | None
    flip: bool | str
    interpolation: str
    on_error: str
    num_workers: int | None


class FileDataModule(ImageDataModule):
    """Base class of datamodules of image files, which workers decode to uint8.

    A subclass sets ``upright`` and ``class_names``, and returns its files in :meth:`find`.

    Args:
        image_size: Side of the network's input, pixels.
        eval_resize: Shorter side of an image before the center crop in evaluation, pixels; None
            for 256 / 224 of ``image_size``.
        crop_area: Smallest and largest fraction of the image area in a training crop.
        crop_aspect: Smallest and largest width over height of a training crop.
        train_sizes: [epoch, pixels] pairs: side of the training images from that epoch on
            (progressive resizing).
        flip: Mirror training images at random; ``"alternating"``: the first epoch at random, then
            each image in every other epoch (arXiv:2404.00498).
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        on_error: ``"stop"`` at the first unreadable file; or ``"skip"`` unreadable files and list
            them in the run's ``bad_files.txt`` at the end of the epoch.
        num_workers: Worker processes per rank; None shares the cores among the ranks, up to 8 each.
        **options: See :class:`se_lightning.data.base.ImageDataModule`; here ``batch_size=32`` and
            ``eval_batch_size=128`` by default.

    Raises:
        ValueError: If an option is out of its range.
    """

    # ImageNet's, as in torchvision.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    upright: bool
    defaults: ClassVar[ImageOptions] = {"batch_size": 32, "eval_batch_size": 128}

    def __init__(
        self,
        *,
        image_size: int = 224,
        eval_resize: int | None = None,
        crop_area: Sequence[float] = (0.08, 1.0),
        crop_aspect: Sequence[float] = (0.75, 4 / 3),
        train_sizes: Sequence[Sequence[int]] | None = None,
        flip: bool | str = True,
        interpolation: str = "bilinear",
        on_error: str = "stop",
        num_workers: int | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(num_workers=num_workers, **(FileDataModule.defaults | options))
        check_interpolation(interpolation)
        positive_integer("image_size", image_size)
        self.image_size = image_size
        resize = round(image_size * 256 / 224) if eval_resize is None else eval_resize
        look: dict[str, Any] = {"upright": self.upright, "interpolation": interpolation}
        self._eval_view = CenterCrop(resize, image_size, **look)
        self._train_view = RandomResizedCrop(
            image_size,
            sizes=train_sizes,
            area=crop_area,
            aspect=crop_aspect,
            flip=flip,
            seed=self.seed,
            **look,
        )
        self._bad_files = BadFiles(on_error)
        self._sources: dict[str, Source] = {}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """As in the base class, with ``resize``, the shorter side before the center crop."""
        view = self._eval_view
        crop = {"resize": view.resize, "interpolation": view.interpolation}
        return super().preprocessing | crop

    def find(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``."""
        raise TypeError(f"{type(self).__name__} must define `find`.")

    def source(self, split: str) -> Source:
        """Return the files of ``train``, ``val`` or ``test``, from a cache."""
        if split not in self._sources:
            self._sources[split] = self.find(split)
            self._compare([split])
        return self._sources[split]

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Return the number of images of a split and a digest of the number in each class."""
        labels = self.source(split).labels
        # Independent of the order, which folders, tar files and shards do not share.
        counts = np.bincount(labels, minlength=self.num_classes)
        return {"images": len(labels), "classes": digest(counts.astype("<i8"))}

    def _splits_found(self) -> Sequence[str]:
        return tuple(self._sources)

    def prepare_data(self) -> None:
        """Index the files once per node; other ranks read the cached index."""
        if self.trainer is not None:
            self.setup(self.trainer.state.fn)

    def setup(self, stage: str | None = None) -> None:
        """Find the files that a stage needs; all of them if None."""
        for split in self.splits_of(stage):
            self.source(split)

    def dataset(self, split: str, *, augmented: bool) -> ImageFiles:
        """Return the split ``train``, ``val`` or ``test``; its item at (epoch, keys) is a batch."""
        finish = self.finish(augmented=augmented)
        if augmented:
            return ImageFiles(self.source(split), self._train_view, finish, self.transforms)
        return ImageFiles(self.source(split), self._eval_view, finish)

    def labels(self, split: str) -> np.ndarray:
        """Return the labels (N,) of ``train``, ``val`` or ``test``."""
        return self.source(split).labels

    def _loader(
        self, dataset: ImageDataset, order: TrainSampler | EvalSampler, batch_size: int
    ) -> DataLoader:
        options = self._options(order, batch_size)
        if not isinstance(dataset, ImageFiles):
            return Loader(dataset, **options)
        folder = Path() if self.trainer is None else Path(self.trainer.default_root_dir)
        return FileLoader(dataset, bad_files=self._bad_files, folder=folder, **options)
