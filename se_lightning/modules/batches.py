"""Images and labels in the batches of any data set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["images_of", "labels_of", "pair_of"]

# Keys of torchvision, Hugging Face (datasets and processors), timm, MONAI, TorchGeo, WebDataset.
_IMAGES = ("image", "images", "pixel_values", "img", "imgs", "input", "inputs", "x", "jpg", "png")
_LABELS = ("label", "labels", "target", "targets", "class", "cls", "y", "fine_label")


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch: the batch, its first item, or the entry with their name.

    Raises:
        ValueError: If a mapping has no images.
    """
    if isinstance(batch, Mapping):
        return _entry(batch, "images", _IMAGES)
    return batch if isinstance(batch, Tensor) else batch[0]


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch, its second item or the entry with their name; None if none."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in _LABELS if name in batch), None)
    return batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None


def pair_of(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a batch, which may contain more.

    Args:
        batch: (images, labels, ...), or a mapping such as {"pixel_values": ..., "labels": ...}.

    Returns:
        Images (N, C, H, W); labels (N,) int64, also from (N, 1), or probabilities (N, K). Floats
        (N,) or (N, 1), as for a binary cross-entropy, are probabilities of class 1 out of two.

    Raises:
        ValueError: If there are no images or no labels.
    """
    if isinstance(batch, Mapping):
        images, labels = _entry(batch, "images", _IMAGES), _entry(batch, "labels", _LABELS)
    elif isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError(
            "A batch has images, but no labels; its data set must return (image, label), or a "
            "mapping with both."
        )
    else:
        images, labels, *_ = batch
    if not isinstance(labels, Tensor):
        return images, labels
    labels = labels.flatten() if labels.shape[1:] == (1,) else labels
    if not labels.is_floating_point():
        return images, labels.long()
    return images, torch.stack((1 - labels, labels), dim=1) if labels.ndim == 1 else labels


def _entry(batch: Mapping, what: str, names: tuple[str, ...]) -> Any:
    for name in names:
        if name in batch:
            return batch[name]
    raise ValueError(
        f"A batch with the keys {', '.join(map(str, batch))} has no {what} under any of "
        f"{', '.join(names)}; rename the key in the data set or its collate function."
    )
