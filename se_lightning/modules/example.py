"""A batch of one image, for summaries, graphs and exports."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["example_images"]


def example_images(network: nn.Module, data: Any, in_channels: int | None) -> Tensor | None:
    """Return zeros (1, C, H, W) that a network takes; None if their shape is unknown.

    The shape is that of the data, if a datamodule describes it, and else the usual one of the
    network: the only one that it takes, or 32 or 224 pixels, depending on its stride.

    Args:
        network: The network.
        data: A datamodule, or None.
        in_channels: Channels of the images, if neither the network nor the data tell.
    """
    channels = getattr(data, "in_channels", None) or getattr(network, "in_channels", in_channels)
    size = getattr(data, "image_size", None) or getattr(network, "image_size", None)
    if not isinstance(size, int):
        smallest, stride = getattr(network, "min_size", 1), getattr(network, "reduction", 32)
        size = max(smallest, 224 if stride > 8 else 32)
    if not isinstance(channels, int):
        return None
    return torch.zeros(1, channels, size, size)
