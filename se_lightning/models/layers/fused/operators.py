"""The Triton kernels as operators of torch, which ``torch.compile`` and ``torch.export`` can see.

:mod:`se_lightning.models.layers.fused.gpu` describes what they compute, and calls them with maps of
one layout.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op

from se_lightning.models.layers.fused.dtypes import wide
from se_lightning.models.layers.fused.triton_kernels import (
    merge_kernel,
    moments_kernel,
    rescale_kernel,
    sums_kernel,
)

__all__ = ["gradient_sums", "moments", "product_sums", "rescale"]

TILE = 8192  # bytes: four loads of 16 bytes by each of the 128 threads of a program
ROW = {True: 256, False: 1024}  # bytes of a tile that lie side by side: channels-last, contiguous
# A pass over a map is split into at least so many programs, several for each multiprocessor of the
# largest cards, while each has at least so many tiles.
PROGRAMS = 4096
TILES = 4


def wrap_triton(kernel: Any) -> Any:
    """As torch.library.wrap_triton, which refuses interpreted kernels in torch 2.11.

    It has that name because torch finds the kernels of an operator by it, in the source.
    """
    compiled = isinstance(kernel, triton.JITFunction)
    return torch.library.wrap_triton(kernel) if compiled else kernel


def _power(size: int, limit: int) -> int:
    """Return the least power of 2 that is not below the size, or the limit."""
    power = 1
    while power < size and power < limit:  # comparisons, which a size of unknown value allows
        power *= 2
    return power


def _shape(y: Tensor) -> tuple[int, int, int, int, int]:
    """Return images, channels, pixels, and the strides of channels and pixels."""
    images, channels, height, width = y.shape
    pixels = height * width
    last = y.is_contiguous(memory_format=torch.channels_last)
    return (images, channels, pixels, *((1, channels) if last else (pixels, 1)))


def _blocks(y: Tensor) -> tuple[int, int]:
    """Return the channels and pixels of a tile."""
    _, channels, pixels, stride_c, _ = _shape(y)
    tile = TILE // y.element_size()
    row = ROW[stride_c == 1] // y.element_size()
    if stride_c == 1:
        block_c = _power(channels, row)
        return block_c, _power(pixels, tile // block_c)
    block_p = _power(pixels, row)
    return _power(channels, tile // block_p), block_p


def _parts(y: Tensor, block_c: int, block_p: int) -> tuple[int, int]:
    """Return the number of parts into which the pixels are split for sums, and their length."""
    images, channels, pixels, _, _ = _shape(y)
    tiles = triton.cdiv(pixels, block_p)
    programs = images * triton.cdiv(channels, block_c)
    parts = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(tiles, TILES))
    length = triton.cdiv(tiles, parts) * block_p
    return triton.cdiv(pixels, length), length


def _sums_by_part(y: Tensor) -> tuple[Tensor, Tensor, list[int], dict[str, int], tuple[int]]:
    """Return two empty sums of each part, and a kernel's sizes, blocks and grid."""
    images, channels, pixels, *strides = _shape(y)
    block_c, block_p = _blocks(y)
    parts, length = _parts(y, block_c, block_p)
    first = torch.empty((parts, images, channels), dtype=wide(y.dtype), device=y.device)
    grid = (images * triton.cdiv(channels, block_c) * parts,)
    sizes = [images, channels, pixels, *strides, parts, length]
    return first, torch.empty_like(first), sizes, {"block_c": block_c, "block_p": block_p}, grid


def _merged(
    y: Tensor, first: Tensor, second: Tensor, length: int, moments: bool
) -> tuple[Tensor, Tensor]:
    """Return the sums over all parts, (N, C, 1, 1), of sums over each, (parts, N, C)."""
    parts, images, channels = first.shape
    shape = (images, channels, 1, 1)
    if parts == 1:
        return first.view(shape), second.view(shape)
    rows = images * channels
    results = torch.empty_like(first[0]), torch.empty_like(second[0])
    wrap_triton(merge_kernel)[(triton.cdiv(rows, 128),)](
        first, second, *results, rows, _shape(y)[2], length, moments=moments, block=128
    )
    return results[0].view(shape), results[1].view(shape)


@triton_op("se_lightning::moments", mutates_args={})
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over space and the sum of squared deviations from it."""
    mean, m2, sizes, blocks, grid = _sums_by_part(y)
    wrap_triton(moments_kernel)[grid](y, mean, m2, *sizes, **blocks)
    return _merged(y, mean, m2, sizes[-1], True)


def _sums(
    grad: Tensor, out: Tensor | None, y: Tensor, center: Tensor | None, masked: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums of the masked gradient and of its product with the centered map."""
    total, product, sizes, blocks, grid = _sums_by_part(y)
    wrap_triton(sums_kernel)[grid](
        grad, grad if out is None else out, y, y if center is None else center, masked,
        total, product, *sizes, has_out=out is not None, has_center=center is not None, **blocks,
    )  # fmt: skip
    return _merged(y, total, product, sizes[-1], False)


@triton_op("se_lightning::gradient_sums", mutates_args={})
def gradient_sums(
    grad: Tensor, out: Tensor, y: Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient where out is positive, and its sums."""
    masked = torch.empty_like(grad)
    total, product = _sums(grad, out, y, center, masked)
    return masked, total, product


@triton_op("se_lightning::product_sums", mutates_args={})
def product_sums(grad: Tensor, y: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of a gradient; an operator cannot return its own argument."""
    return _sums(grad, None, y, center, grad)


@triton_op("se_lightning::rescale", mutates_args={})
def rescale(
    y: Tensor,
    factor: Tensor,
    offset: Tensor | None,
    other: Tensor | None,
    slope: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return y * factor + offset + other * slope, or its positive part."""
    result = torch.empty_like(y)
    images, channels, pixels, *strides = _shape(y)
    block_c, block_p = _blocks(y)
    parts = triton.cdiv(pixels, block_p)
    grid = (images * triton.cdiv(channels, block_c) * parts,)
    wrap_triton(rescale_kernel)[grid](
        y, factor, factor if offset is None else offset, y if other is None else other,
        factor if slope is None else slope, result, channels, pixels, *strides, parts,
        has_offset=offset is not None, has_other=other is not None, has_slope=slope is not None,
        relu=relu, double=y.dtype == torch.float64,
        block_c=block_c, block_p=block_p,
    )  # fmt: skip
    return result


# What the operators return, without the kernels' grids, which depend on the size: an exported
# program may have sizes of unknown value, and the interpreter cannot trace kernels.


@moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    return _sums_like(y), _sums_like(y)


@gradient_sums.register_fake
def _(grad: Tensor, out: Tensor, y: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(grad), _sums_like(y), _sums_like(y)


@product_sums.register_fake
def _(grad: Tensor, y: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    return _sums_like(y), _sums_like(y)


@rescale.register_fake
def _(
    y: Tensor,
    factor: Tensor,
    offset: Tensor | None,
    other: Tensor | None,
    slope: Tensor | None,
    relu: bool,
) -> Tensor:
    return torch.empty_like(y)


def _sums_like(y: Tensor) -> Tensor:
    return torch.empty((y.shape[0], y.shape[1], 1, 1), dtype=wide(y.dtype), device=y.device)
