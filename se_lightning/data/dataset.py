"""A data set of images that also returns whole batches, and the DataLoader for it."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, default_collate

from se_lightning.data.samplers import Batch, EvalSampler, OneEpoch, TrainSampler, unpack

__all__ = ["ImageDataset", "Loader", "batches_of"]

_LATER = 1 << 21  # after all epochs of a training


class ImageDataset(Dataset):
    """Base class of data sets of images; a subclass implements :meth:`batch`.

    ``self[i]`` is an image (C, H, W) float32 and its label, as in torchvision; mixup and cutmix act
    within the batches that a DataLoader requests. ``self[epoch, keys]`` is a whole batch.

    The augmentation of ``self[i]`` is that of a random late epoch, from torch's generator, which
    differs between workers and epochs. After :meth:`set_epoch` it depends on (seed, epoch, sample)
    alone, and is the one of the datamodule's loaders.

    Args:
        augmented: Whether the images are augmented.
    """

    def __init__(self, *, augmented: bool) -> None:
        self.augmented = augmented
        self._epoch = torch.tensor(-1)

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define `__len__`.")

    def batch(self, epoch: int, keys: np.ndarray) -> Any:
        """Return the samples ``keys`` (N,), augmented as in an epoch, as an ``ImageBatch``."""
        raise TypeError(f"{type(self).__name__} must define `batch`.")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation of ``self[i]``, also for workers that start later."""
        # In shared memory, so that persistent workers see later epochs.
        self._epoch.share_memory_().fill_(operator.index(epoch))

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, tuple):
            return self.batch(*item)
        return self.__getitems__([operator.index(item)])[0]

    def __getitems__(self, items: Sequence[int]) -> "Samples":
        """Return samples by index, or by the integers of a sampler; DataLoader calls it.

        Raises:
            IndexError: If an index is out of range.
        """
        epoch, keys = unpack(items)
        if epoch is None:
            epoch, keys = self._plain(keys)
        return Samples(self.batch(epoch, keys))

    def _plain(self, indices: np.ndarray) -> Batch:
        size = len(self)
        wrong = indices[(indices < -size) | (indices >= size)]
        if len(wrong):
            raise IndexError(f"Index {wrong[0]} is out of range for {size} images.")
        epoch, keys = int(self._epoch), indices % size
        if self.augmented and epoch < 0:
            epoch = int(torch.randint(_LATER, 2 * _LATER, ()))
        return max(epoch, 0), keys


class Samples(Sequence):
    """The samples of a batch as pairs of image and label, which are made when one is requested."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self._pairs: list[tuple[Tensor, Tensor | int]] | None = None

    def pairs(self) -> list[tuple[Tensor, Tensor | int]]:
        """Return images (C, H, W) and labels; mixed labels are probabilities (K,)."""
        if self._pairs is None:
            images, labels = self.batch
            listed = labels.tolist() if labels.ndim == 1 else labels
            self._pairs = list(zip(images, listed, strict=True))
        return self._pairs

    def __getitem__(self, index: Any) -> Any:
        return self.pairs()[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | int]]:
        return iter(self.pairs())

    def __len__(self) -> int:
        return len(self.pairs())


class _Batches(ImageDataset):
    """A data set of a user, whose item at (epoch, keys) is a batch."""

    def __init__(self, dataset: Dataset, *, augmented: bool) -> None:
        super().__init__(augmented=augmented)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, epoch: int, keys: np.ndarray) -> Any:
        return self.dataset[epoch, keys]


def batches_of(dataset: Dataset, *, augmented: bool) -> ImageDataset:
    """Return the data set; one whose item at (epoch, keys) is a batch is wrapped."""
    if isinstance(dataset, ImageDataset):
        return dataset
    return _Batches(dataset, augmented=augmented)


def collate(samples: Any) -> Any:
    """Return the batch that the samples come from; collate those of other data sets."""
    return samples.batch if isinstance(samples, Samples) else default_collate(samples)


class Loader(DataLoader):
    """DataLoader of the datamodules, for any loop.

    Each iteration is the next epoch, unless :meth:`set_epoch` chose one.

    Args:
        dataset: Images.
        find_ranks: Share the samples among the processes of ``torch.distributed`` if it is
            initialized when the loader is used, as in Fabric.
        **options: Options of DataLoader.
    """

    def __init__(self, dataset: Dataset, *, find_ranks: bool = False, **options: Any) -> None:
        super().__init__(dataset, **{"collate_fn": collate} | options)
        self.find_ranks = find_ranks

    @property
    def order(self) -> TrainSampler | EvalSampler | None:
        """The sampler; None if another package replaced it."""
        order = getattr(self.batch_sampler, "sampler", None)
        order = order.order if isinstance(order, OneEpoch) else order
        return order if isinstance(order, TrainSampler | EvalSampler) else None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; later ones go on from there."""
        if self.order is not None:
            self.order.set_epoch(epoch)

    def _share(self) -> None:
        if self.find_ranks and self.order is not None and distributed.is_initialized():
            self.order.share_among(distributed.get_world_size(), distributed.get_rank())

    def __len__(self) -> int:
        self._share()
        return super().__len__()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that workers start after Lightning's call of `set_epoch`.
        self._share()
        yield from super().__iter__()
