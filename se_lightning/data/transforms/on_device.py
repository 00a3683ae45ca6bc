"""A batch of bytes, and the last transforms, which run on its device on the whole batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from se_lightning.data.transforms.color import ColorJitter
from se_lightning.data.transforms.per_image import check_number, check_pixels
from se_lightning.data.transforms.sample_rng import sample_seeds, uniform

__all__ = ["Erasing", "Finish", "ImageBatch", "Mixing", "erase", "unreadable"]

_ATTEMPTS = 10  # to find a box that fits into the image, as in torchvision


def erase(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Set a box of each image to zero, in place.

    Args:
        images: (N, C, H, W).
        boxes: (N, 4) whole numbers: top, left, bottom, right; the last two are exclusive.

    Example:
        >>> erase(torch.ones(1, 1, 2, 2), np.array([[0, 1, 2, 2]])).tolist()
        [[[[1.0, 0.0], [1.0, 0.0]]]]
    """
    top, left, bottom, right = (
        torch.from_numpy(boxes).to(images.device, non_blocking=True).T[..., None]
    )
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None]
    return images.masked_fill_(inside & ((columns >= left) & (columns < right))[:, None, None], 0.0)


def erasing_boxes(draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return boxes of 2 to 33 % of the area and a log-uniform aspect ratio of 0.3 to 3.3.

    A box is the first of 10 attempts that fits into the image, or empty if none does.

    Args:
        draws: (N, 22) random numbers in [0, 1).
        height: Height of the images, pixels.
        width: Width of the images, pixels.

    Shape:
        (N, 4): top, left, bottom, right.
    """
    areas = height * width * (0.02 + draws[:, :_ATTEMPTS] * (0.33 - 0.02))
    logs = np.log(0.3) + draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * (np.log(3.3) - np.log(0.3))
    tall = np.rint(np.sqrt(areas * np.exp(logs))).astype(np.int64)
    wide = np.rint(np.sqrt(areas / np.exp(logs))).astype(np.int64)
    fits = (tall < height) & (wide < width)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    tall = np.take_along_axis(tall, first, 1)[:, 0] * found
    wide = np.take_along_axis(wide, first, 1)[:, 0] * found
    top = (draws[:, -2] * (height - tall + 1)).astype(np.int64)
    left = (draws[:, -1] * (width - wide + 1)).astype(np.int64)
    return np.stack([top, left, top + tall, left + wide], axis=1)


class Erasing:
    """Random erasing (Zhong et al., arXiv:1708.04896) and cutout (arXiv:1708.04552).

    Args:
        random_erasing: Probability that a box of an image is erased.
        cutout: Side of the square erased from every image, pixels. Its center is anywhere in the
            image, so part of it may be outside.
        seed: Seed of the run.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(self, *, random_erasing: float, cutout: int, seed: int) -> None:
        check_number("random_erasing", random_erasing, 0, 1, "a probability")
        check_pixels("cutout", cutout)
        self.random_erasing, self.cutout, self.seed = random_erasing, cutout, seed

    def __call__(self, images: Tensor, epoch: int, keys: np.ndarray) -> Tensor:
        """Erase parts of images (N, C, H, W) of the samples ``keys`` (N,) in place."""
        height, width = images.shape[-2:]
        if self.random_erasing:
            draws = uniform(self.seed, epoch, keys, "erasing", 2 * _ATTEMPTS + 3)
            boxes = erasing_boxes(draws[:, 1:], height, width)
            boxes[draws[:, 0] >= self.random_erasing] = 0
            images = erase(images, boxes)
        if self.cutout:
            draws = uniform(self.seed, epoch, keys, "cutout", 2)
            corner = (draws * (height, width)).astype(np.int64) - self.cutout // 2
            images = erase(images, np.concatenate([corner, corner + self.cutout], axis=1))
        return images


class Mixing:
    """Mixup (Zhang et al., arXiv:1710.09412) and cutmix (arXiv:1905.04899), from torchvision.

    With both, each batch gets one of them at random. Labels become probabilities (N, K).

    Args:
        mixup: Alpha of the beta distribution; 0 for none.
        cutmix: The same for cutmix.
        seed: Seed of the run.

    Raises:
        ValueError: If an alpha is negative or not a number.
    """

    def __init__(self, *, mixup: float, cutmix: float, seed: int) -> None:
        check_number("mixup", mixup, 0, float("inf"), "an alpha")
        check_number("cutmix", cutmix, 0, float("inf"), "an alpha")
        self.mixup, self.cutmix, self.seed = float(mixup), float(cutmix), seed  # torch needs floats

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, epoch: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Mix the images (N, C, H, W) of the batch that starts with the sample ``first``."""
        kinds = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
            if alpha
        ]
        generator = torch.default_generator
        state = generator.get_state()
        # A sample is in one batch of an epoch only, so the first one identifies the batch.
        seed = sample_seeds(self.seed, epoch, np.array([first]), "mixing")[0]
        generator.manual_seed(int(seed >> np.uint64(1)))
        images, labels = v2.RandomChoice(kinds)(images, labels)
        generator.set_state(state)
        return images, labels


@lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that normalize bytes; shape is (channels, repetitions)."""
    means, stds = (torch.tensor(x, dtype=torch.float32, device="cpu") for x in (mean, std))
    channels, times = shape
    scale, shift = (x.expand(channels).repeat(times) for x in (1 / (255 * stds), -means / stds))
    return scale.to(device), shift.to(device)


class Finish:
    """Turn a batch of bytes into the network's input: color jitter, normalization, erasing, mixing.

    It holds plain numbers only, so that it is cheap to send along with a worker's batch.

    Args:
        mean: Mean of each channel, or one for all, in [0, 1].
        std: Standard deviation, in the same unit.
        color: Applied before the normalization.
        erasing: Applied after the normalization, so that erased pixels have the mean.
        mixing: Applied last.
        num_classes: K, for mixed labels.
    """

    def __init__(
        self,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        *,
        color: ColorJitter | None = None,
        erasing: Erasing | None = None,
        mixing: Mixing | None = None,
        num_classes: int = 0,
    ) -> None:
        self.mean, self.std = (tuple(np.ravel(x).tolist()) for x in (mean, std))
        self.color, self.erasing, self.mixing = color, erasing, mixing
        self.num_classes = num_classes

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        epoch: int,
        keys: np.ndarray,
        first: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (N, C, H, W) float32, and labels (N,) or, mixed, (N, K).

        Args:
            images: (N, C, H, W) uint8.
            labels: (N,) int64.
            epoch: Epoch, from 0.
            keys: (N,) keys of the samples.
            first: Key of the batch's first sample, if that may be missing from ``keys``.
        """
        if self.color:
            images = self.color(images.float().div_(255), epoch, keys).mul_(255)
        images = self._normalized(images)
        if self.erasing is not None:
            images = self.erasing(images, epoch, keys)
        if self.mixing and len(keys):
            first = int(keys[0]) if first is None else first
            return self.mixing(images, labels, self.num_classes, epoch, first)
        return images, labels

    def _normalized(self, images: Tensor) -> Tensor:
        """Return float32 in the same memory format, from uint8 or float."""
        n, c, h, w = images.shape
        if images.stride(1) == 1 and c > 1:
            # Channels last: whole rows at once; otherwise the innermost loop would have 3 steps.
            scale, shift = _scale_and_shift(self.mean, self.std, (c, w), images.device)
            rows = images.permute(0, 2, 3, 1).reshape(n, h, w * c)
            return rows.float().mul_(scale).add_(shift).view(n, h, w, c).permute(0, 3, 1, 2)
        scale, shift = _scale_and_shift(self.mean, self.std, (c, 1), images.device)
        return images.float().mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


def unreadable(bad: Sequence[tuple[str, str]]) -> ValueError:
    """Return the error for the name and reason of files that cannot be read."""
    name, reason = bad[0]
    return ValueError(
        f"{name} cannot be read: {reason}. Repair or remove the file, or skip such files in the "
        "datamodule's loaders with data.on_error=skip."
    )


_FLOAT32 = torch.empty(0, dtype=torch.float32)


@dataclass
class ImageBatch:
    """A pair of images and labels; the images stay bytes until they are used.

    ``images, labels = batch`` finishes the batch on its current device. ``batch.to(device)`` moves
    the bytes first, a quarter of the size of floats, and returns the finished pair. Lightning and
    Fabric call ``to`` themselves, with or without the datamodule.

    Attributes:
        images: (B, C, H, W) uint8.
        labels: (B,) int64.
        finish: Turns the bytes into the finished pair.
        epoch: Epoch, from 0.
        keys: (B,) keys of the samples; they stay on the CPU.
        first: Key of the first sample, readable or not; None if the batch is empty.
        bad: Name and reason of each file that could not be read. Such a batch cannot be used until
            they are removed from here, which the datamodules' loaders do for ``on_error="skip"``.
        like: Empty tensor of the dtype of the finished images. Lightning's precision plugins
            convert floating-point tensors before the transfer, including this one.
    """

    images: Tensor
    labels: Tensor | np.ndarray
    finish: Finish
    epoch: int
    keys: np.ndarray
    first: int | None = None
    bad: Sequence[tuple[str, str]] = ()
    like: Tensor = _FLOAT32

    def to(self, device: torch.device | str, non_blocking: bool = True) -> tuple[Tensor, Tensor]:
        """Return the finished images (B, C, H, W) and labels (B,) or, mixed, (B, K).

        Raises:
            ValueError: If a file could not be read.
        """
        if self.bad:
            raise unreadable(self.bad)
        # A copy to the CPU must be complete before it is read.
        non_blocking = non_blocking and torch.device(device).type == "cuda"
        images = self.images.to(device, non_blocking=non_blocking)
        labels = torch.as_tensor(self.labels).to(device, non_blocking=non_blocking)
        images, labels = self.finish(images, labels, self.epoch, self.keys, self.first)
        if self.like.dtype != images.dtype:
            images = images.to(self.like.dtype)
            labels = labels.to(self.like.dtype) if labels.is_floating_point() else labels
        return images, labels

    def pin_memory(self) -> "ImageBatch":
        """Return the batch with its images in page-locked memory; DataLoader calls it."""
        return replace(self, images=self.images.pin_memory())

    @cached_property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.to(self.images.device)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._pair)

    def __getitem__(self, index: int) -> Tensor:
        return self._pair[index]

    def __len__(self) -> int:
        return 2
