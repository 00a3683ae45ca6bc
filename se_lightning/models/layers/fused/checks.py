"""When a tail is fused: what it must not replace, and what is not worth it."""

import os
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from se_lightning.models.layers.fused import gpu

__all__ = ["fuses", "is_plain"]

# SE_LIGHTNING_FUSED=0 takes the steps one by one, for comparisons.
ENABLED = os.environ.get("SE_LIGHTNING_FUSED") != "0"

Kind = TypeVar("Kind", bound=nn.Module)
# A map must have more elements than this to be worth it: Python takes half a millisecond more.
SMALL = 2**18


def fuses(x: Tensor, gate: Any) -> bool:
    """Return whether ``rescaled`` is to replace a gate, and steps around it, for this input.

    It cannot where something looks at the single steps: hooks, tracing, export.
    """
    compiling = torch.compiler.is_compiling()
    if type(x) is not Tensor or x.ndim != 4 or not ENABLED:
        return False
    if x.numel() <= SMALL and not compiling:
        return False
    # A batch norm refuses one value per channel.
    if x.numel() <= x.shape[1] or not x.is_floating_point() or _has_hooks(gate):
        return False
    if compiling:
        return not torch.compiler.is_exporting()
    covered = x.device.type == "cpu" or (x.is_cuda and gpu.AVAILABLE)
    return covered and not _is_transformed()


def is_plain(step: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Return whether a step is a module of just this class, without hooks, and with its weights."""
    return type(step) is kind and not _has_hooks(step) and getattr(step, "affine", True)


def _is_transformed() -> bool:
    """Return whether something else than autograd follows the operations."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
        or torch_modules._global_backward_hooks
        or torch_modules._global_backward_pre_hooks
    )
