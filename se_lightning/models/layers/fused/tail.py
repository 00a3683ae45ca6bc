r"""Norm, squeeze, gate, shortcut and ReLU in few passes over the feature map.

One step after another, autograd reads and writes the map a dozen times. Fewer passes are enough,
because all that the steps need from the whole map are sums over space. With the norm's output
:math:`x = a y + b` (per channel), the squeeze :math:`z`, the gate :math:`g(z)` (both per image and
channel) and :math:`out = \mathrm{ReLU}(g x + s)`, one pass computes :math:`\sum y` and so
:math:`z = a \bar y + b`, and another one the output. With :math:`m` the gradient of the output
where that is positive, the backward pass computes

.. math::
    \partial g = \sum m x = a \sum m y + b \sum m, \qquad
    \partial x = g m + \partial z / HW, \qquad \partial s = m

The gradients of the norm follow from the same two sums, so that the gradient of y is written
once. The normalized map is never stored, nor is the scaled one.

Two functions share the work, between which autograd runs the gate as usual: :class:`_Squeeze`
before it and :class:`_Rescale` after it. The latter's backward pass leaves its factors to the
former's, which knows the gradient of the squeeze.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.models.layers.fused import cpu, gpu
from se_lightning.models.layers.fused.dtypes import wide

__all__ = ["rescaled"]

Excite = Callable[[Tensor], Tensor]


def _passes(y: Tensor) -> ModuleType:
    return gpu if y.is_cuda else cpu


@dataclass
class _Norm:
    """Mean and variance with which a batch norm normalizes a batch, (C, 1, 1)."""

    mean: Tensor
    inverse: Tensor  # 1 / sqrt(variance + eps)
    scale: Tensor  # x = scale * y + shift
    shift: Tensor
    of_batch: bool  # so that they depend on the input
    eps: float


@dataclass
class _Shared:
    """What the two functions share."""

    norm: _Norm | None
    left: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


def rescaled(
    y: Tensor,
    excite: Excite,
    *,
    norm: nn.BatchNorm2d | None = None,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return ``relu(x * excite(mean(x)) + shortcut)`` with ``x = norm(y)``.

    Args:
        y: Feature map.
        excite: Function from the squeeze, (N, C, 1, 1), to the gate, (N, C, 1, 1).
        norm: Batch norm, whose running statistics are updated in training.
        shortcut: Added to the rescaled map.
        relu: Whether a ReLU follows.

    Shape:
        y, shortcut and the output are (N, C, H, W).
    """
    if torch.compiler.is_compiling():
        return _formulas(y, excite, norm, shortcut, relu)
    weight = bias = None
    with torch.no_grad():
        means, normed = _statistics(norm, y)
    if norm is not None:
        weight, bias = norm.weight, norm.bias
    shared = _Shared(normed)
    if torch.is_grad_enabled():
        x, z = _Squeeze.apply(y, weight, bias, means, shared)
    else:
        x, z = y, _squeeze(means, normed, y.dtype)
    gate = excite(z)
    if gate.shape != z.shape:  # a hook returned a gate per pixel
        x = _normalize(y, weight, bias, normed) * gate
        x = x if shortcut is None else x + shortcut
        return F.relu(x) if relu else x
    if torch.is_grad_enabled():
        return _Rescale.apply(x, y, weight, bias, gate, shortcut, relu, shared)
    return _rescale(y, gate, shortcut, relu, normed)


def _statistics(norm: Any, y: Tensor) -> tuple[Tensor, _Norm | None]:
    """Return the means over space and the norm's statistics; update the running ones."""
    if norm is not None and (norm.training or norm.running_mean is None):
        means, mean, variance = _passes(y).statistics(y)
        if norm.training and norm.running_mean is not None:
            _update(norm, mean, variance, y.numel() // y.shape[1])
    else:
        means = _passes(y).means(y)
        if norm is None:
            return means, None
        mean, variance = (each.to(means.dtype) for each in (norm.running_mean, norm.running_var))
    of_batch = norm.training or norm.running_mean is None
    inverse = (variance + norm.eps).rsqrt()
    scale = norm.weight * inverse
    numbers = (mean, inverse, scale, torch.addcmul(norm.bias, mean, scale, value=-1))
    mean, inverse, scale, shift = (each.view(-1, 1, 1) for each in numbers)
    return means, _Norm(mean, inverse, scale, shift, of_batch, norm.eps)


def _update(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as torch's batch norm does."""
    count_of_batches = norm.num_batches_tracked
    if count_of_batches is not None:
        count_of_batches.add_(1)
    momentum = norm.momentum
    if momentum is None:  # the running statistics are cumulative means
        momentum = 0.0 if count_of_batches is None else 1.0 / count_of_batches
    unbiased = variance * (count / (count - 1))
    for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.mul_(1 - momentum).add_(now * momentum)


def _formulas(y: Tensor, excite: Excite, norm: Any, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Return what :func:`rescaled` does, by operations that Inductor fuses to two passes."""
    wider = y.to(wide(y.dtype))
    if norm is None:
        factor = excite(wider.mean((2, 3), keepdim=True).to(y.dtype))
        offset: Tensor | float = 0.0
    else:
        # The variance of a channel is that within the images plus that of their means.
        within, means = torch.var_mean(wider, (2, 3), keepdim=True, correction=0)
        of_batch = norm.training or norm.running_mean is None
        if of_batch:
            mean = means.mean(0)
            variance = within.mean(0) + (means - mean).square().mean(0)
            if norm.training and norm.running_mean is not None:
                with torch.no_grad():
                    count = y.numel() // y.shape[1]
                    _update(norm, mean.detach().flatten(), variance.detach().flatten(), count)
        else:
            mean, variance = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
        inverse = (variance + norm.eps).rsqrt()
        scale = norm.weight.view(-1, 1, 1) * inverse
        shift = norm.bias.view(-1, 1, 1) - mean * scale
        gate = excite((scale * means + shift).to(y.dtype))
        factor, offset = scale * gate, shift * gate
    out = wider * factor + offset
    out = (out if shortcut is None else out + shortcut).to(y.dtype)
    return F.relu(out) if relu else out


def _squeeze(means: Tensor, norm: _Norm | None, dtype: torch.dtype) -> Tensor:
    """Return the mean of the norm's output, (N, C, 1, 1)."""
    z = means.clone() if norm is None else torch.addcmul(norm.shift, means, norm.scale)
    return z.to(dtype)


def _rescale(
    y: Tensor, gate: Tensor, shortcut: Tensor | None, relu: bool, norm: _Norm | None
) -> Tensor:
    """Return the norm's output times the gate, plus the shortcut."""
    factor, offset = gate.to(wide(y.dtype)), None
    if norm is not None:
        factor, offset = factor * norm.scale, factor * norm.shift
    return _passes(y).rescale(y, factor, offset, shortcut, relu=relu)


def _normalize(y: Tensor, weight: Any, bias: Any, norm: _Norm | None) -> Tensor:
    """Return the norm's output by differentiable operations."""
    if norm is None:
        return y
    if norm.of_batch:
        return F.batch_norm(y, None, None, weight, bias, True, eps=norm.eps)
    scale = weight.view(-1, 1, 1) * norm.inverse
    return ((y - norm.mean) * scale + bias.view(-1, 1, 1)).to(y.dtype)


class _Squeeze(torch.autograd.Function):
    """From y to x = norm(y), which remains virtual, and its mean over space.

    The first output only carries gradients; its values are those of y.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Any,
        bias: Any,
        means: Tensor,
        shared: _Shared,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(y, weight, bias, means)
        ctx.shared = shared
        ctx.set_materialize_grads(False)
        return y.view_as(y), _squeeze(means, shared.norm, y.dtype)

    @staticmethod
    def backward(ctx: Any, x_grad: Tensor | None, z_grad: Tensor | None) -> Any:
        y, weight, bias, means = ctx.saved_tensors
        norm, left = ctx.shared.norm, ctx.shared.left
        ctx.shared.left = None
        if left is None:
            x_grad = _whole(x_grad, z_grad, y)
            return (*_norm_backward(x_grad, y, weight, bias, norm), None, None)
        masked, gate, total, product = left
        share = torch.zeros_like(means) if z_grad is None else z_grad.to(means.dtype)
        size = y.shape[2] * y.shape[3]
        if norm is None:
            return _passes(y).combine(masked, gate, share / size), None, None, None, None
        # The sums of x's gradient, and of its product with the centered y.
        shift_grad = torch.addcmul(share, gate, total).sum(0)
        product = torch.addcmul(share * (means - norm.mean), gate, product).sum(0)
        scale_grad = product * norm.inverse
        y_grad = None
        if ctx.needs_input_grad[0]:
            offset, slope, second = share, None, None
            if norm.of_batch:
                slope = norm.inverse * scale_grad / -len(y)
                offset = share - shift_grad / len(y) - slope * norm.mean
                slope, second = (norm.scale / size * slope).flatten(), y
            offset = offset * (norm.scale / size)
            y_grad = _passes(y).combine(masked, norm.scale * gate, offset, slope, second)
        grads = (scale_grad.view_as(weight).to(weight), shift_grad.view_as(bias).to(bias))
        return (y_grad, *grads, None, None)


def _whole(x_grad: Tensor | None, z_grad: Tensor | None, y: Tensor) -> Tensor:
    """Return the gradient of x, with the squeeze's share."""
    if z_grad is None:
        return torch.zeros_like(y) if x_grad is None else x_grad
    share = (z_grad / (y.shape[2] * y.shape[3])).expand_as(y)
    return share if x_grad is None else x_grad + share


def _norm_backward(
    x_grad: Tensor, y: Tensor, weight: Any, bias: Any, norm: _Norm | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of y, weight and bias by autograd, differentiable if wanted."""
    if norm is None:
        return x_grad, None, None
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs: Any = [
            each if again else each.detach().requires_grad_() for each in (y, weight, bias)
        ]
        wanted = [each for each in inputs if each.requires_grad]
        x = _normalize(inputs[0], inputs[1], inputs[2], norm)
        found = iter(torch.autograd.grad(x, wanted, x_grad, create_graph=again))
    return tuple(next(found) if each.requires_grad else None for each in inputs)


class _Rescale(torch.autograd.Function):
    """From x, its gate and the shortcut to relu(x * gate + shortcut)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weight: Any,
        bias: Any,
        gate: Tensor,
        shortcut: Tensor | None,
        relu: bool,
        shared: _Shared,
    ) -> Tensor:
        out = _rescale(y, gate, shortcut, relu, shared.norm)
        ctx.save_for_backward(y, weight, bias, gate, out if relu else None)
        ctx.shared, ctx.with_shortcut = shared, shortcut is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, weight, bias, gate, out = ctx.saved_tensors
        norm = ctx.shared.norm
        ctx.shared.left = None
        if torch.is_grad_enabled():  # for a second derivative
            masked = grad if out is None else grad * (out > 0)
            x_grad = masked * gate
            gate_grad = (masked * _normalize(y, weight, bias, norm)).sum((2, 3), keepdim=True)
        else:
            center = None if norm is None else norm.mean.flatten()
            masked, total, product = _passes(y).gradient_sums(grad, out, y, center)
            gate_grad = product
            if norm is not None:
                gate_grad = norm.scale * product + bias.view(-1, 1, 1) * total
            x_grad = None
            if ctx.needs_input_grad[0]:
                ctx.shared.left = masked, gate.to(total.dtype), total, product
                x_grad = grad.new_zeros(()).expand_as(grad)  # _Squeeze computes it
        shortcut_grad = masked if ctx.with_shortcut else None
        gate_grad = gate_grad.to(gate.dtype)
        return x_grad, None, None, None, gate_grad, shortcut_grad, None, None
