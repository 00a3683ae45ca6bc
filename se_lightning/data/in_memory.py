"""Small images: the whole set as one tensor in memory, a batch at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from se_lightning.data.augment import CropFlip
from se_lightning.data.order import Batch, EvalBatches, TrainBatches

__all__ = ["InMemoryDataModule", "InMemoryImages"]


class InMemoryImages(Dataset):
    """Images as one uint8 tensor; an item is a batch.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        mean: of a pixel, in [0, 1].
        std: of a pixel, in the same unit.
        augment: what is done to training batches, on the uint8 pixels.

    Shape:
        ``self[epoch, indices]`` is ((B, C, H, W) float32, (B,) int64).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: float,
        std: float,
        augment: CropFlip | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std, self.augment = mean, std, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        epoch, indices = batch[0], torch.from_numpy(batch[1])
        images = self.images[indices]
        if self.augment is not None:
            images = self.augment(images, epoch, indices)
        return images.float().sub_(255 * self.mean).div_(255 * self.std), self.labels[indices]


class InMemoryDataModule(LightningDataModule):
    """What the small data sets share: loaders over tensors in memory.

    A subclass names its images and says, in :meth:`load`, where the three splits come from.

    Args:
        batch_size: samples per device in training, at least 2.
        eval_batch_size: the most samples per device in validation and test.
        crop_padding: zero padding of the random crop, pixels; 0 crops nothing.
        flip: mirror training images at random.
        num_workers: worker processes; 0 is fastest, since a batch is one gather.
        seed: of the training order and the augmentation.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    image_size: int
    mean: float
    std: float
    in_channels: int = 1
    class_names: Sequence[str]

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        crop_padding: int,
        flip: bool,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.crop_padding = crop_padding
        self.flip = flip
        self.num_workers = num_workers
        self.seed = seed
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return ``train``, ``val`` and ``test``: images (N, [C,] H, W) uint8 and labels (N,)."""
        raise TypeError(f"{type(self).__name__} must define `load`.")

    def setup(self, stage: str | None = None) -> None:  # noqa: D102
        if not self._splits:
            for split, (images, labels) in self.load().items():
                shape = (len(images), self.in_channels, *images.shape[-2:])
                self._splits[split] = (
                    torch.tensor(images).view(shape),
                    torch.tensor(labels).long(),
                )

    def train_dataloader(self) -> DataLoader:
        """Return batches in an order that only (seed, epoch) decides."""
        size = len(self._splits["train"][1])
        augment = CropFlip(size, padding=self.crop_padding, flip=self.flip, seed=self.seed)
        order = TrainBatches(size, self.batch_size, seed=self.seed, **self._ranks())
        if self.trainer is not None:
            order.set_epoch(self.trainer.current_epoch)
        return self._loader("train", order, augment)

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:  # noqa: D102
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        size = len(self._splits[split][1])
        return self._loader(split, EvalBatches(size, self.eval_batch_size, **self._ranks()))

    def _loader(self, split: str, order: Sampler, augment: CropFlip | None = None) -> DataLoader:
        images, labels = self._splits[split]
        return DataLoader(
            InMemoryImages(images, labels, mean=self.mean, std=self.std, augment=augment),
            sampler=order,
            batch_size=None,  # the sampler's items are batches already
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}
