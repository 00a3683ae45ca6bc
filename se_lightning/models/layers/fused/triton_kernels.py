"""Triton kernels for passes over a feature map.

A program has a tile of one image: some of its channels times some of its pixels. The strides of
both say how the map is stored, so that the same kernels serve channels-last and contiguous maps;
Triton reads along the one that is 1. Sums stay in registers until all pixels of a program are
read. A map of few images and channels is split further, by pixels, into parts whose sums a second
kernel adds in order. Nothing depends on the order in which programs run.

:mod:`se_lightning.models.layers.fused.operators` chooses tiles and parts.
"""
# mypy: allow-untyped-defs
# The types of a kernel's arguments are those of the call.

import triton
from triton import language as tl

__all__ = ["merge_kernel", "moments_kernel", "rescale_kernel", "sums_kernel"]


@triton.jit
def _place(channels, parts, block_c: tl.constexpr):
    """Return the image, channels, and part of the pixels of a program."""
    program = tl.program_id(0)
    groups = tl.cdiv(channels, block_c)
    c = (program % groups) * block_c + tl.arange(0, block_c)
    rest = program // groups
    return (rest // parts).to(tl.int64), c, rest % parts


@triton.jit
def _offsets(n, c, p, channels, pixels, stride_c, stride_p):
    """Return where the elements of a tile are; 64 bits, for maps of more than 2^31 elements."""
    inner = p.to(tl.int64)[:, None] * stride_p + c.to(tl.int64)[None, :] * stride_c
    return n * channels * pixels + inner


@triton.jit
def moments_kernel(
    y_ptr, mean_ptr, m2_ptr, images, channels, pixels, stride_c, stride_p, parts, length,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Write the mean and the sum of squared deviations of each part."""
    n, c, part = _place(channels, parts, block_c)
    wide = mean_ptr.dtype.element_ty
    lane = tl.arange(0, block_p)
    start = part * length
    end = tl.minimum(start + length, pixels)
    mean = tl.zeros((block_p, block_c), wide)
    m2 = tl.zeros((block_p, block_c), wide)
    count = tl.zeros((), wide)
    for first in range(start, end, block_p):  # Welford's algorithm in each lane
        p = first + lane
        inside = (p < end)[:, None] & (c < channels)[None, :]
        at = _offsets(n, c, p, channels, pixels, stride_c, stride_p)
        y = tl.load(y_ptr + at, mask=inside, other=0).to(wide)
        count += 1
        delta = tl.where(inside, y - mean, 0)
        mean += delta * (1 / count)
        m2 += delta * (y - mean)
    counts = tl.maximum((end - start - lane + block_p - 1) // block_p, 0).to(wide)[:, None]
    whole = tl.sum(mean * counts, 0) / (end - start).to(wide)
    distance = mean - whole[None, :]
    m2 = tl.sum(m2 + counts * distance * distance, 0)
    row = (part * images + n) * channels + c
    tl.store(mean_ptr + row, whole, mask=c < channels)
    tl.store(m2_ptr + row, m2, mask=c < channels)


@triton.jit
def sums_kernel(
    grad_ptr, out_ptr, y_ptr, center_ptr, masked_ptr, total_ptr, product_ptr,
    images, channels, pixels, stride_c, stride_p, parts, length,
    has_out: tl.constexpr, has_center: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Write the masked gradient and the sums of each part."""
    n, c, part = _place(channels, parts, block_c)
    wide = total_ptr.dtype.element_ty
    start = part * length
    end = tl.minimum(start + length, pixels)
    total = tl.zeros((block_p, block_c), wide)
    product = tl.zeros((block_p, block_c), wide)
    center = tl.zeros((block_c,), wide)
    if has_center:
        center = tl.load(center_ptr + c, mask=c < channels, other=0).to(wide)
    for first in range(start, end, block_p):
        p = first + tl.arange(0, block_p)
        inside = (p < end)[:, None] & (c < channels)[None, :]
        at = _offsets(n, c, p, channels, pixels, stride_c, stride_p)
        masked = tl.load(grad_ptr + at, mask=inside, other=0)
        y = tl.load(y_ptr + at, mask=inside, other=0).to(wide)
        if has_out:  # a NaN passes the gradient on, as in torch
            out = tl.load(out_ptr + at, mask=inside, other=0).to(wide)
            masked = tl.where(out <= 0, tl.zeros_like(masked), masked)
            tl.store(masked_ptr + at, masked, mask=inside)
        masked = masked.to(wide)
        total += masked
        product += masked * (y - center[None, :])
    row = (part * images + n) * channels + c
    tl.store(total_ptr + row, tl.sum(total, 0), mask=c < channels)
    tl.store(product_ptr + row, tl.sum(product, 0), mask=c < channels)


@triton.jit
def merge_kernel(
    first_ptr, second_ptr, first_out, second_out, rows, pixels, length,
    moments: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add the sums of the parts, or merge their moments by Chan's formula."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    wide = first_ptr.dtype.element_ty
    first = tl.zeros((block,), wide)
    second = tl.zeros((block,), wide)
    at = row
    for start in range(0, pixels, length):
        more = tl.load(first_ptr + at, mask=row < rows, other=0)
        second += tl.load(second_ptr + at, mask=row < rows, other=0)
        at += rows
        if moments:
            before = tl.zeros((), wide) + start
            count = tl.zeros((), wide) + tl.minimum(length, pixels - start)
            delta = more - first
            first += delta * (count / (before + count))
            second += delta * delta * (before * count / (before + count))
        else:
            first += more
    tl.store(first_out + row, first, mask=row < rows)
    tl.store(second_out + row, second, mask=row < rows)


@triton.jit
def rescale_kernel(
    y_ptr, factor_ptr, offset_ptr, other_ptr, slope_ptr, result_ptr,
    channels, pixels, stride_c, stride_p, parts,
    has_offset: tl.constexpr, has_other: tl.constexpr, has_slope: tl.constexpr,
    relu: tl.constexpr, double: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Write y * factor + offset + other * slope, or its positive part."""
    wide = tl.float64 if double else tl.float32
    n, c, part = _place(channels, parts, block_c)
    p = part * block_p + tl.arange(0, block_p)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    at = _offsets(n, c, p, channels, pixels, stride_c, stride_p)
    row = n * channels + c
    factor = tl.load(factor_ptr + row, mask=c < channels, other=0).to(wide)
    value = tl.load(y_ptr + at, mask=inside, other=0).to(wide) * factor[None, :]
    if has_offset:
        offset = tl.load(offset_ptr + row, mask=c < channels, other=0).to(wide)
        value += offset[None, :]
    if has_other:
        other = tl.load(other_ptr + at, mask=inside, other=0).to(wide)
        if has_slope:
            slope = tl.load(slope_ptr + c, mask=c < channels, other=0).to(wide)
            other *= slope[None, :]
        value += other
    if relu:  # keeps NaN, as in torch
        value = tl.where(value <= 0, 0, value)
    tl.store(result_ptr + at, value.to(result_ptr.dtype.element_ty), mask=inside)
