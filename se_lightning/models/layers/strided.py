"""Strided 1x1 convolutions of few channels, which oneDNN computes wrongly on CPUs."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["slice_strided"]

# Channels that oneDNN puts into one block, with AVX-512; 8 with AVX2.
_BLOCK = 16


def slice_strided(network: nn.Module) -> list[str]:
    """Let 1x1 convolutions apply their stride by slicing, where oneDNN's own way is unsafe.

    The weight gradient of a strided 1x1 convolution with fewer than 16 input channels, in
    channels-last and float32, writes past a buffer on a CPU with several threads: the process
    crashes, hangs, or goes on with a wrong gradient (https://github.com/uxlfoundation/oneDNN/
    issues/6035; seen in torch 2.11 and 2.14.1). The same convolution with stride 1 has no such
    buffer. ``torch.compile`` uses channels-last on CPUs whatever the format of the input, so that
    another memory format would not be enough.

    Outputs and gradients are the same up to rounding. Classes, parameters and hooks stay as they
    are. Convolutions of a subclass of ``nn.Conv2d`` may compute something else, and are left alone.

    Args:
        network: Any network; changed in place.

    Returns:
        The paths of the convolutions that were changed.
    """
    unsafe = {path: module for path, module in network.named_modules() if _is_unsafe(module)}
    for module in unsafe.values():
        module._conv_forward = partial(_sliced, module)
    return list(unsafe)


def _is_unsafe(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.in_channels // module.groups < _BLOCK
    )


def _sliced(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    down, across = conv.stride
    return F.conv2d(x[..., ::down, ::across], weight, bias, groups=conv.groups)
