"""The four passes over a feature map on a CPU; :mod:`.gpu` has those on a GPU.

:mod:`se_lightning.models.layers.fused.tail` says what they are for. They consist of torch's
operations. Sums, and the factors of images and channels, are float32 for half precision, and of the
map's type otherwise.
"""

import torch
from torch import Tensor

from se_lightning.models.layers.fused.dtypes import wide

__all__ = ["combine", "gradient_sums", "means", "rescale", "statistics"]

# Elements of an image from which on torch's batch norm is called per image, which takes 10 us.
LARGE = 2**16
# Elements that are summed at a time in half precision, which torch copies to float32 before.
PART = 2**17
# Bytes of a vector register with AVX-512; a loop over fewer channels would not be vectorized.
VECTOR = 64


def means(y: Tensor) -> Tensor:
    """Return the mean over space, (N, C, 1, 1)."""
    return _sum(y) / (y.shape[2] * y.shape[3])


def statistics(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means of images and channels, and mean and variance of the channels.

    Shape:
        (N, C, H, W) to (N, C, 1, 1), (C,) and (C,).
    """
    # Running statistics, although they are discarded, make those of half precision float32.
    mean, variance = torch.zeros(2, y.shape[1], dtype=wide(y.dtype)).unbind()
    return (means(y), *torch.batch_norm_update_stats(y, mean, variance, 0.0))


def rescale(
    y: Tensor, factor: Tensor, offset: Tensor | None, shortcut: Tensor | None, *, relu: bool
) -> Tensor:
    """Return ``y * factor + offset + shortcut``, without its negative values if ``relu``.

    Shape:
        ``factor`` and ``offset`` are (N, C, 1, 1), the others (N, C, H, W).
    """
    factor, offset = factor.to(y.dtype), None if offset is None else offset.to(y.dtype)
    channels, width = y.shape[1], y.shape[3]
    last = y.is_contiguous(memory_format=torch.channels_last)
    narrow = last and channels * y.itemsize < VECTOR
    if narrow:
        y, factor = _rows(y), _rows(factor, width)
        shortcut = None if shortcut is None else _rows(shortcut)
        offset = None if offset is None else _rows(offset, width)
    if shortcut is None:
        out = y * factor if offset is None else torch.addcmul(offset, y, factor)
    else:
        out = torch.addcmul(shortcut, y, factor)
        out = out if offset is None else out.add_(offset)
    out = out.relu_() if relu else out
    return out.unflatten(2, (width, channels)).permute(0, 3, 1, 2) if narrow else out


def _rows(x: Tensor, times: int = 1) -> Tensor:
    """Return whole rows of pixels, (N, H, W * C), with each pixel repeated along its row."""
    pixels = x.permute(0, 2, 3, 1)
    return (pixels.repeat(1, 1, times, 1) if times > 1 else pixels).flatten(2)


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
    masked = grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
    if y.numel() >= len(y) * LARGE:
        return masked, *_batch_norm_sums(masked, y, center)
    total, product = _sum(masked), _sum(masked, y)
    if center is not None:
        product -= total * center.view(-1, 1, 1)
    return masked, total, product


def _sum(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the sum of x, or of x * y, over space, (N, C, 1, 1)."""
    if x.dtype == wide(x.dtype):
        if y is None:
            return x.sum((2, 3), keepdim=True)
        return torch.linalg.vecdot(x.flatten(2), y.flatten(2), dim=2)[:, :, None, None]
    total = x.new_empty((*x.shape[:2], 1, 1), dtype=wide(x.dtype))
    images = max(1, PART * len(x) // x.numel())
    for i in range(0, len(x), images):
        part = x[i : i + images]
        part = part if y is None else part * y[i : i + images]
        total[i : i + images] = part.sum((2, 3), keepdim=True, dtype=total.dtype)
    return total


def _batch_norm_sums(x: Tensor, y: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of x and of x * (y - center): those of a batch norm's backward pass."""
    one = torch.ones(y.shape[1], dtype=wide(y.dtype))
    center = torch.zeros_like(one) if center is None else center
    sums: list[Tensor] = []
    for image, there in zip(x.split(1), y.split(1), strict=True):
        sums += torch.ops.aten.native_batch_norm_backward.default(
            image, there, None, None, None, center, one, True, 0.0, [False, True, True]
        )[1:]
    product, total = torch.stack(sums).view(len(y), 2, -1, 1, 1).unbind(1)
    return total, product


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
    out = torch.addcmul(offset.to(masked.dtype), masked, factor.to(masked.dtype))
    if slope is None or y is None:
        return out
    return out.addcmul_(y, slope.to(masked.dtype).view(-1, 1, 1))
