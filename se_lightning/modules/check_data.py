"""Check that a network fits the data."""

import math
import warnings
from typing import Any

from torch import nn

from se_lightning.lightning import MisconfigurationException

__all__ = ["check_data"]


def check_data(network: nn.Module, num_classes: int, data: Any, *, trains: bool) -> None:
    """Check that a network fits the data, if both describe themselves.

    Args:
        network: The network, perhaps with ``in_channels``, ``image_size`` and ``min_size``.
        num_classes: The number of classes that it tells apart.
        data: A datamodule, perhaps with ``num_classes``, ``in_channels`` and ``image_size``; None
            if there is none.
        trains: Whether to warn about images that are too small for training.

    Raises:
        MisconfigurationException: If the network cannot take the images, or has another number of
            classes, or if there is only one class.
    """
    classes = getattr(data, "num_classes", None)
    if classes == 1:
        raise MisconfigurationException(
            "The data set has one class, so there is nothing to tell apart; it needs at least two."
        )
    if classes is not None and classes != num_classes:
        raise MisconfigurationException(
            f"The data set has {classes} classes, but the network tells "
            f"{num_classes} apart; set `num_classes` to {classes}."
        )
    size, reduction = getattr(data, "image_size", None), getattr(network, "reduction", 1)
    _check_images(network, getattr(data, "in_channels", None), size)
    if trains and size is not None and math.ceil(size / reduction) == 1:
        warnings.warn(
            f"Images of {size}x{size} pixels leave a last feature map of 1x1, without spatial "
            "information. Use a network for small images (se_resnet20), or stem=cifar.",
            stacklevel=2,
        )


def _check_images(network: nn.Module, channels: int | None, size: int | None) -> None:
    """Refuse images that the network cannot take, before loaders or ranks start."""
    wanted = getattr(network, "in_channels", None)
    if None not in (channels, wanted) and channels != wanted:
        raise MisconfigurationException(
            f"The images have {channels} channel(s), but the network takes {wanted}; set "
            f"`in_channels` to {channels}."
        )
    if size is None:
        return
    exact = getattr(network, "image_size", None)
    if exact not in (None, size):
        raise MisconfigurationException(
            f"The images are {size}x{size} pixels, but the network takes {exact}x{exact}; set "
            f"`image_size` to {size}."
        )
    smallest = getattr(network, "min_size", 1)
    if size < smallest:
        raise MisconfigurationException(
            f"The images are {size}x{size} pixels, but the network takes at least "
            f"{smallest}x{smallest}; use a network for small images such as se_resnet20."
        )
