"""Batches of a split, for the tasks that examine a trained network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from se_lightning.arguments import one_of
from se_lightning.data.base import ImageDataModule
from se_lightning.lightning import LightningDataModule
from se_lightning.modules.batches import pair_of

__all__ = ["SPLITS", "class_names", "device_of", "split_batches"]

SPLITS = ("train", "val", "test")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def split_batches(
    datamodule: LightningDataModule, split: str, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of a split, in order and without augmentation.

    Batches of which no image can be read are left out.

    Args:
        datamodule: Datamodule; one from outside se_lightning has ``val`` and ``test`` only.
        split: ``"train"``, ``"val"`` or ``"test"``.
        device: Device of the batches.

    Raises:
        ValueError: If ``split`` is unknown, or ``"train"`` of another package's datamodule.
    """
    one_of("split", split, SPLITS)
    if isinstance(datamodule, ImageDataModule):
        loader = datamodule.eval_dataloader(split)
    elif split == "train":
        raise ValueError(
            f"`split` (='train') must be val or test for {type(datamodule).__name__}, which is not "
            "an se_lightning datamodule."
        )
    else:
        loader = getattr(datamodule, f"{split}_dataloader")()
    for batch in loader:
        moved = datamodule.transfer_batch_to_device(batch, device, 0)
        images, labels = pair_of(datamodule.on_after_batch_transfer(moved, 0))
        if len(labels):
            yield images, labels


def class_names(datamodule: LightningDataModule, num_classes: int) -> list[str]:
    """Return the class names of the data, or the labels if there are no names."""
    names = getattr(datamodule, "class_names", None)
    return [str(label) for label in range(num_classes)] if names is None else list(names)
