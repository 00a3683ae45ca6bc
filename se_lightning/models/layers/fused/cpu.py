"""The four passes over a feature map on a CPU; :mod:`.gpu` has those on a GPU.

:mod:`se_lightning.models.layers.fused.tail` says what they are for. They consist of torch's
operations on some images at a time, which stay in the cache in between. Sums, and the factors of
images and channels, are float32 for half precision, and of the map's type otherwise.
"""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from se_lightning.models.layers.fused.dtypes import wide

__all__ = ["combine", "gradient_sums", "rescale", "statistics"]

# Elements of a map that are processed together.
CHUNK = 2**18
# Elements of an image from which on torch's batch norm is called per image, which takes 10 us.
LARGE = 2**16
LARGE_HALF = 2**14  # half precision


def _chunks(images: int, *maps: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the maps, or None, some images at a time."""
    return zip(*(repeat(None) if each is None else each.split(images) for each in maps))  # noqa: B905


def _images(y: Tensor) -> int:
    """Return how many images to process together."""
    return max(1, CHUNK * len(y) // y.numel())


def _is_large(y: Tensor) -> bool:
    return y.numel() >= len(y) * (LARGE_HALF if y.itemsize < 4 else LARGE)


def statistics(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means of images and channels, and mean and variance of the channels.

    Shape:
        (N, C, H, W) to (N, C, 1, 1), (C,) and (C,).
    """
    means = y.mean((2, 3), keepdim=True, dtype=wide(y.dtype))
    # Running statistics, although they are discarded, make those of half precision float32.
    mean, variance = torch.zeros(2, y.shape[1], dtype=means.dtype).unbind()
    return (means, *torch.batch_norm_update_stats(y, mean, variance, 0.0))


def rescale(
    y: Tensor, factor: Tensor, offset: Tensor | None, shortcut: Tensor | None, *, relu: bool
) -> Tensor:
    """Return ``y * factor + offset + shortcut``, without its negative values if ``relu``.

    Shape:
        ``factor`` and ``offset`` are (N, C, 1, 1), the others (N, C, H, W).
    """
    out = torch.empty_like(y)
    factor, offset = factor.to(y.dtype), None if offset is None else offset.to(y.dtype)
    for to, part, times, plus, add in _chunks(_images(y), out, y, factor, offset, shortcut):
        if plus is not None:
            # addcmul is faster than add_ for an operand with a number per channel.
            torch.addcmul(plus.expand_as(part), part, times, out=to)
            to = to if add is None else to.add_(add)
        elif add is not None:
            torch.addcmul(add, part, times, out=to)
        else:
            torch.mul(part, times, out=to)
        if relu:
            to.relu_()
    return out


def gradient_sums(
    grad: Tensor, out: Tensor | None, y: Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient where the output is positive, its sum, and that of its product with y.

    Args:
        grad: Gradient of the output.
        out: Output; None if there was no ReLU.
        y: Input.
        center: Subtracted from y, (C,): the sum of products would cancel if the mean of y were far
            above its deviation.

    Shape:
        (N, C, H, W), (N, C, 1, 1) and (N, C, 1, 1).
    """
    if grad.stride() != y.stride():
        grad = torch.empty_like(y).copy_(grad)
    masked = grad if out is None else torch.empty_like(y)
    sums = _sums_of_large if _is_large(y) else _sums_of_small
    return masked, *sums(grad, out, y, masked, center)


def _mask(grad: Tensor, out: Tensor | None, masked: Tensor) -> None:
    if out is not None:
        torch.ops.aten.threshold_backward(grad, out, 0, grad_input=masked)


def _sums_of_large(
    grad: Tensor, out: Tensor | None, y: Tensor, masked: Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor]:
    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for here, positive, there, to in _chunks(1, grad, out, y, masked):
            _mask(here, positive, to)
            yield to, there

    center = torch.zeros(y.shape[1], dtype=wide(y.dtype)) if center is None else center
    totals, products = _batch_norm_sums(parts(), center)
    return totals.view(*y.shape[:2], 1, 1), products.view(*y.shape[:2], 1, 1)


def _batch_norm_sums(
    images: Iterable[tuple[Tensor, Tensor]], center: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums of x and of x * (y - center) over space for images (x, y), (N, C).

    They are those of a batch norm's backward pass.
    """
    one = torch.ones_like(center)
    results: list[Tensor] = []
    for x, y in images:
        results += torch.ops.aten.native_batch_norm_backward.default(
            x, y, None, None, None, center, one, True, 0.0, [False, True, True]
        )[1:]
    products, totals = torch.stack(results).view(-1, 2, len(center)).unbind(1)
    return totals, products


def _sums_of_small(
    grad: Tensor, out: Tensor | None, y: Tensor, masked: Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor]:
    totals, products = torch.empty((2, *y.shape[:2], 1, 1), dtype=wide(y.dtype)).unbind()
    maps = (grad, out, y, masked, totals, products)
    for here, positive, there, to, total, product in _chunks(_images(y), *maps):
        _mask(here, positive, to)
        torch.sum(to, (2, 3), keepdim=True, dtype=total.dtype, out=total)
        if to.dtype == total.dtype:
            torch.linalg.vecdot(to.flatten(2), there.flatten(2), dim=2, out=product.flatten(1))
        else:
            torch.sum(to * there, (2, 3), keepdim=True, dtype=total.dtype, out=product)
    if center is not None:
        products -= totals * center.view(-1, 1, 1)
    return totals, products


def combine(
    masked: Tensor,
    factor: Tensor,
    offset: Tensor,
    slope: Tensor | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """Return ``masked * factor + offset + y * slope``.

    Shape:
        ``factor`` and ``offset`` are (N, C, 1, 1), ``slope`` is (C,), the others (N, C, H, W).
    """
    out = torch.empty_like(masked)
    factor, offset = factor.to(masked.dtype), offset.to(masked.dtype)
    slope = None if slope is None else slope.to(masked.dtype).view(-1, 1, 1)
    for to, here, times, plus, there in _chunks(_images(masked), out, masked, factor, offset, y):
        torch.addcmul(plus.expand_as(to), here, times, out=to)
        if slope is not None:
            to.addcmul_(there, slope)
    return out
