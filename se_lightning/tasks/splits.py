"""What the tasks that look into a trained network share: its batches of a split."""

from collections.abc import Iterator

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from se_lightning.arguments import one_of
from se_lightning.data.base import ImageDataModule

__all__ = ["SPLITS", "class_names", "device_of", "split_batches"]

SPLITS = ("train", "val", "test")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def split_batches(
    datamodule: LightningDataModule, split: str, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images and labels of a split, not augmented, each sample once and in order.

    Args:
        datamodule: of this package; of anybody's, ``val`` and ``test``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        device: where to.

    Raises:
        ValueError: if there is no such split.
    """
    one_of("split", split, SPLITS)
    if isinstance(datamodule, ImageDataModule):
        loader = datamodule.eval_dataloader(split)
    elif split == "train":
        raise ValueError(f"`split` (=train): {type(datamodule).__name__} has val and test only.")
    else:
        loader = getattr(datamodule, f"{split}_dataloader")()
    for batch in loader:
        moved = datamodule.transfer_batch_to_device(batch, device, 0)
        images, labels = datamodule.on_after_batch_transfer(moved, 0)
        yield images, labels


def class_names(datamodule: LightningDataModule, num_classes: int) -> list[str]:
    """Return the data's names of the classes, or their labels."""
    names = getattr(datamodule, "class_names", None)
    return [str(label) for label in range(num_classes)] if names is None else list(names)
