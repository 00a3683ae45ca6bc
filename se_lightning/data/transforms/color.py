"""Color jitter of a whole batch, with different factors and order for each image."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from se_lightning.data.transforms.per_image import check_number
from se_lightning.data.transforms.sample_rng import uniform

__all__ = ["ColorJitter"]


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    factors = factors.view(-1, 1, 1, 1)
    return (factors * images + (1 - factors) * others).clamp_(0, 1)


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), factors)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    grey = TF.rgb_to_grayscale(images) if images.shape[1] == 3 else images
    return _blend(images, grey.mean(dim=(1, 2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, TF.rgb_to_grayscale(images), factors)


def _hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Rotate the hue by a fraction of the circle; value and chroma stay the same."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    width = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / width,
        torch.where(value == green, (blue - red) / width + 2, (red - green) / width + 4),
    )
    sixths = sixths + 6 * shifts.view(-1, 1, 1)
    channels = []
    for place in (5, 3, 1):
        distance = (place + sixths) % 6
        share = torch.minimum(distance, 4 - distance).clamp_(0, 1)
        channels.append(value - chroma * share)
    return torch.stack(channels, dim=1)


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _brightness,
    _contrast,
    _saturation,
    _hue,
)


def _strengths(color_jitter: float | Sequence[float]) -> tuple[float, ...]:
    """Return the strengths of brightness, contrast, saturation and hue."""
    if isinstance(color_jitter, int | float):
        check_number("color_jitter", color_jitter, 0, float("inf"), "a strength")
        return (float(color_jitter),) * 3 + (0.0,)
    if len(color_jitter) != 4:
        raise ValueError(
            f"`color_jitter` (={list(color_jitter)}) must be one number, or four: brightness, "
            "contrast, saturation, hue."
        )
    for strength in color_jitter:
        check_number("color_jitter", strength, 0, float("inf"), "a strength")
    check_number("color_jitter", color_jitter[3], 0, 0.5, "a hue")
    return tuple(map(float, color_jitter))


class ColorJitter:
    """Brightness, contrast, saturation and hue in a random order, as in ``v2.ColorJitter``.

    torchvision draws one set of factors per batch; here each image has its own.

    Args:
        color_jitter: Strength of the first three (the hue is kept), or all four.
        seed: Seed of the run.

    Raises:
        ValueError: If there are not 1 or 4 numbers, or one is out of its range.

    Shape:
        (N, C, H, W) in [0, 1] to the same. Saturation and hue change images of 3 channels only.
    """

    def __init__(self, color_jitter: float | Sequence[float], *, seed: int) -> None:
        self.strengths, self.seed = _strengths(color_jitter), seed

    def __bool__(self) -> bool:
        return any(self.strengths)

    def __call__(self, images: Tensor, epoch: int, keys: np.ndarray) -> Tensor:
        """Change images (N, C, H, W) of the samples ``keys`` (N,) in place."""
        draws = uniform(self.seed, epoch, keys, "color", 8)
        order = draws[:, 4:].argsort(axis=1)
        factors = self._factors(draws[:, :4])
        for position in range(4):
            for kind, change in enumerate(_CHANGES):
                rows = np.flatnonzero(order[:, position] == kind)
                if not self.strengths[kind] or not len(rows):
                    continue
                if images.shape[1] != 3 and change in (_saturation, _hue):
                    continue
                where = torch.from_numpy(rows).to(images.device, non_blocking=True)
                strength = torch.from_numpy(factors[rows, kind]).to(images, non_blocking=True)
                images[where] = change(images[where], strength)
        return images

    def _factors(self, draws: np.ndarray) -> np.ndarray:
        strengths = np.array(self.strengths)
        low, high = np.maximum(0, 1 - strengths), 1 + strengths
        low[3], high[3] = -strengths[3], strengths[3]
        return low + draws * (high - low)
