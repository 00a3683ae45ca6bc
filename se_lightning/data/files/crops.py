"""Crops of image files: random in training, centered in evaluation."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from se_lightning.data.files.decode import eval_image, train_image
from se_lightning.data.transforms.per_image import (
    check_flip,
    check_number,
    check_pixels,
    flipped,
)
from se_lightning.data.transforms.sample_rng import uniform

__all__ = ["CenterCrop", "RandomResizedCrop", "resized_crop"]

_ATTEMPTS = 10  # to find a window that fits into the image, as in torchvision

Window = tuple[int, int, int, int]


def resized_crop(
    draws: Sequence[float],
    height: int,
    width: int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> Window:
    """Return a random window, distributed as in ``v2.RandomResizedCrop``.

    It is the first of 10 attempts that fits, else the largest window in the center.

    Args:
        draws: 22 random numbers in [0, 1).
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        area: Smallest and largest fraction of the image area.
        aspect: Smallest and largest width over height, log-uniform.

    Returns:
        Top, left, height and width, in pixels.

    Example:
        >>> resized_crop([0.5] * 22, 100, 100, (0.25, 0.25), (1, 1))
        (25, 25, 50, 50)
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(_ATTEMPTS):
        pixels = height * width * (area[0] + draws[2 * attempt] * (area[1] - area[0]))
        ratio = math.exp(low + draws[2 * attempt + 1] * (high - low))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1))
            return top, left, h, w
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    return (height - h) // 2, (width - w) // 2, h, w


class RandomResizedCrop:
    """Random crop for training, mirrored or not.

    Args:
        size: Side of the result, pixels.
        sizes: [epoch, side] pairs in rising order: the side from that epoch on; ``size`` before
            (progressive resizing).
        area: Smallest and largest fraction of the image area.
        aspect: Smallest and largest width over height.
        flip: Mirror images; see :func:`se_lightning.data.transforms.per_image.flipped`.
        upright: Apply the EXIF orientation.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        seed: Seed of the run.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        sizes: Sequence[Sequence[int]] | None,
        area: Sequence[float],
        aspect: Sequence[float],
        flip: bool | str,
        upright: bool,
        interpolation: str,
        seed: int,
    ) -> None:
        for name, pair, high in (("crop_area", area, 1.0), ("crop_aspect", aspect, math.inf)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high:
                bound = "0 < low <= high <= 1" if high == 1 else "0 < low <= high"
                raise ValueError(f"`{name}` (={list(pair)}) must be [low, high] with {bound}.")
        sizes = list(sizes or ())
        if any(len(pair) != 2 for pair in sizes) or sizes != sorted(sizes, key=list):
            raise ValueError(
                f"`train_sizes` (={[list(pair) for pair in sizes]}) must be [epoch, pixels] pairs "
                "with rising epochs, such as [[0,128],[6,176]]."
            )
        for epoch, pixels in sizes:
            check_number("train_sizes", epoch, 0, math.inf, "an epoch")
            check_pixels("train_sizes", pixels)
        check_flip(flip)
        self.size, self.sizes, self.area, self.aspect = size, sizes, area, aspect
        self.flip, self.seed = flip, seed
        self.upright, self.interpolation = upright, interpolation

    def side(self, epoch: int) -> int:
        """Return the side of the images in an epoch, pixels."""
        return ([self.size] + [pixels for first, pixels in self.sizes if first <= epoch])[-1]

    def draws(self, epoch: int, keys: np.ndarray) -> list[list[float]]:
        """Return the random numbers of each sample; the first is 1 if its image is mirrored."""
        draws = uniform(self.seed, epoch, keys, "crop", 2 * _ATTEMPTS + 3)
        draws[:, 0] = flipped(draws[:, 0], self.flip, self.seed, epoch, keys)
        return draws.tolist()

    def __call__(self, content: bytes, epoch: int, draws: Sequence[float]) -> Tensor:
        """Decode and crop the content of a file: (3, S, S) uint8."""

        def window(height: int, width: int) -> Window:
            return resized_crop(draws[1:], height, width, self.area, self.aspect)

        image = train_image(
            content,
            self.side(epoch),
            window,
            upright=self.upright,
            interpolation=self.interpolation,
        )
        return image.flip(-1) if draws[0] else image


class CenterCrop:
    """Resize and center crop for evaluation, exactly as in torchvision.

    Args:
        resize: Shorter side after resizing, pixels.
        size: Side of the crop, pixels.
        upright: Apply the EXIF orientation.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ValueError: If ``resize`` is below ``size``.
    """

    def __init__(self, resize: int, size: int, *, upright: bool, interpolation: str) -> None:
        if resize < size:
            raise ValueError(f"`eval_resize` (={resize}) must be at least `image_size` (={size}).")
        self.resize, self.size = resize, size
        self.upright, self.interpolation = upright, interpolation

    def side(self, epoch: int) -> int:
        """Return the side of the images, pixels."""
        return self.size

    def draws(self, epoch: int, keys: np.ndarray) -> list[list[float]]:
        """Return an empty list for each sample."""
        return [[]] * len(keys)

    def __call__(self, content: bytes, epoch: int, draws: Sequence[float]) -> Tensor:
        """Decode and crop the content of a file: (3, S, S) uint8."""
        return eval_image(
            content,
            self.resize,
            self.size,
            upright=self.upright,
            interpolation=self.interpolation,
        )
