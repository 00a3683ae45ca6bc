r"""Passes over a feature map on a GPU: sums over space, and products with factors per channel.

They are what remains of norm, squeeze, gate, shortcut and ReLU when each map is read and written as
rarely as possible: :func:`moments` and :func:`rescale` in the forward pass, :func:`gradient_sums`
and :func:`combine` in the backward pass. Each is one pass. Sums are float32, or float64 for maps of
that type; they are the same in each run; and nothing waits for the GPU.

Maps are (N, C, H, W), channels-last or contiguous, of float64, float32, float16 or bfloat16. A
second map of another layout is copied to that of ``y``, and so is ``y`` if it is neither.

The kernels need Triton, which torch brings along on Linux. :data:`AVAILABLE` says whether it is
installed. They run on CUDA, or on a CPU under ``TRITON_INTERPRET=1``. The functions are not
differentiable.
"""

import torch
from torch import Tensor

from se_lightning.models.layers.fused.dtypes import wide

try:
    import triton  # noqa: F401
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True
    from se_lightning.models.layers.fused import operators

__all__ = [
    "AVAILABLE",
    "combine",
    "gradient_sums",
    "means",
    "moments",
    "rescale",
    "statistics",
]


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean over space and the sum of squared deviations from it, per image and channel.

    By Chan's formula, mean and variance of the batch follow from them without cancellation:
    :math:`\sum_n m_2 + HW \sum_n (\mathrm{mean}_n - \mathrm{mean})^2`.

    Returns:
        Mean and sum, both (N, C, 1, 1). The mean of no pixels is NaN.

    Reference:
        Chan, Golub, LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances. 1979.
    """
    if y.numel() == 0:
        return _sum(y) / 0, _sum(y)
    return operators.moments(_dense(y))


def means(y: Tensor) -> Tensor:
    """Return the mean over space, (N, C, 1, 1)."""
    return y.mean((2, 3), keepdim=True, dtype=wide(y.dtype))


def statistics(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means of images and channels, and mean and variance of the channels.

    Returns:
        (N, C, 1, 1), (C,) and (C,).
    """
    each, squares = moments(y)
    mean = each.mean(0)
    variance = squares.mean(0) / (y.shape[2] * y.shape[3]) + (each - mean).square().mean(0)
    return each, mean.flatten(), variance.flatten()


def rescale(
    y: Tensor,
    factor: Tensor,
    offset: Tensor | None = None,
    shortcut: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """Return ``y * factor + offset + shortcut``, or its positive part.

    Args:
        y: Feature map.
        factor: (N, C, 1, 1).
        offset: (N, C, 1, 1).
        shortcut: Map of the shape of y.
        relu: Whether a ReLU follows.

    Returns:
        Map of y's type and layout.
    """
    return _rescale(y, factor, offset, shortcut, None, relu)


def gradient_sums(
    grad: Tensor, out: Tensor | None, y: Tensor, center: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient where the output is positive, and its sums over space.

    Args:
        grad: Gradient of the output.
        out: Output of a ReLU; None if there was no ReLU.
        y: Feature map.
        center: Number per channel, (C,) or (C, 1, 1), that is subtracted from y; None for 0.

    Returns:
        The masked gradient, which is grad itself without a ReLU; its sum; and the sum of its
        product with ``y - center``. Both sums are (N, C, 1, 1).
    """
    if y.numel() == 0:
        return grad, _sum(y), _sum(y)
    y = _dense(y)
    grad, center = _like(grad, y), None if center is None else center.reshape(-1)
    if out is None:
        return grad, *operators.product_sums(grad, y, center)
    return operators.gradient_sums(grad, _like(out, y), y, center)


def combine(
    masked: Tensor,
    factor: Tensor,
    offset: Tensor,
    slope: Tensor | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """Return ``masked * factor + offset + y * slope``, the gradient of y.

    Args:
        masked: Gradient from :func:`gradient_sums`.
        factor: (N, C, 1, 1).
        offset: (N, C, 1, 1).
        slope: (C,) or (C, 1, 1); None for 0.
        y: Feature map; None without a slope.

    Returns:
        Map of the type and layout of ``masked``.
    """
    return _rescale(masked, factor, offset, None if slope is None else y, slope, False)


def _rescale(
    y: Tensor,
    factor: Tensor,
    offset: Tensor | None,
    other: Tensor | None,
    slope: Tensor | None,
    relu: bool,
) -> Tensor:
    if y.numel() == 0:
        return torch.empty_like(y)
    y = _dense(y)
    return operators.rescale(
        y,
        factor.contiguous(),
        None if offset is None else offset.contiguous(),
        None if other is None else _like(other, y),
        None if slope is None else slope.reshape(-1),
        relu,
    )


def _sum(y: Tensor) -> Tensor:
    """Return the sums over space of a map without elements."""
    return torch.zeros((*y.shape[:2], 1, 1), dtype=wide(y.dtype), device=y.device)


def _format(y: Tensor) -> torch.memory_format:
    return torch.channels_last if y.stride(1) == 1 else torch.contiguous_format


def _dense(y: Tensor) -> Tensor:
    """Return a map in one of the layouts, copied only if it is in neither."""
    return y if y.is_contiguous() else y.contiguous(memory_format=_format(y))


def _like(other: Tensor, y: Tensor) -> Tensor:
    """Return a map in the layout of y, copied only if it is in another."""
    last = y.is_contiguous(memory_format=torch.channels_last)
    return other.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
