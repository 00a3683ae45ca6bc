"""Detection of the first non-finite loss or gradient, on the device."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Found", "Watch"]

_NEVER = 1 << 40  # larger than any number of steps between two reads


class Found(NamedTuple):
    """The first bad step since the last read, counted from 0 there.

    Attributes:
        step: First bad step over all ranks.
        gradients: Names of the parameters with bad gradients on any rank.
        loss: Loss of this rank.
    """

    step: int
    gradients: list[str]
    loss: float


class Watch:
    """Monitor of loss and gradients. Only :meth:`read` synchronizes with the device.

    Args:
        model: Model whose parameters are monitored.
        device: Device of the model.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        named = dict(model.named_parameters())
        self.names, self.parameters = list(named), list(named.values())
        self._device = device
        self._zero = torch.zeros((), device=device)
        self._fine = torch.zeros(len(named), dtype=torch.bool, device=device)
        self._loss = self._zero
        self._restart()

    def _restart(self) -> None:
        self._clock = torch.zeros((), dtype=torch.long, device=self._device)
        self._first = self._clock - 1
        self._wrong = self._fine
        self._step_loss = self._zero

    def see_loss(self, loss: Tensor) -> None:
        """Add the loss of a batch; the first bad loss of a step is kept, or else the last one."""
        self._loss = torch.where(self._loss.isfinite(), loss.detach().float(), self._loss)

    @torch.no_grad()
    def see_step(self, *, gradients: bool) -> None:
        """Add the current gradients, and the loss of the batches since the last step.

        Args:
            gradients: Whether to check the gradients.
        """
        wrong = self._fine
        if gradients and self.parameters:
            figures = _figures([self._gradient(p) for p in self.parameters])
            wrong = torch.stack(figures).isfinite().logical_not()
        bad = wrong.any() | self._loss.isfinite().logical_not()
        well = self._first < 0  # no bad step so far
        first = bad & well
        self._first = torch.where(first, self._clock, self._first)
        self._wrong = torch.where(first, wrong, self._wrong)
        self._step_loss = torch.where(well, self._loss, self._step_loss)
        self._loss = self._zero
        self._clock = self._clock + 1

    def _gradient(self, parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        if gradient is None:
            return self._zero
        if hasattr(gradient, "to_local"):  # a shard
            gradient = gradient.to_local()
        return gradient if gradient.numel() else self._zero

    def read(self, reduce: Callable[..., Tensor]) -> Found | None:
        """Return the first bad step since the last read, or None; then reset.

        Args:
            reduce: Function of a tensor and ``reduce_op="max"`` that returns the maximum over all
                ranks, all of which call this.
        """
        soonest = torch.where(self._first < 0, -1, _NEVER - self._first)
        step = _NEVER - int(reduce(soonest, reduce_op="max"))
        found = None
        if step <= _NEVER:
            wrong = (self._wrong & (self._first == step)).long()
            flags = reduce(wrong, reduce_op="max").tolist()
            names = [name for name, flag in zip(self.names, flags, strict=True) if flag]
            found = Found(step, names, float(self._step_loss))
        self._restart()
        return found


def _figures(tensors: list[Tensor]) -> list[Tensor]:
    """Return a number for each tensor that is finite if and only if all its elements are.

    A sum of squares would not do: it overflows for elements far from the limit.
    """
    if tensors[0].device.type == "cpu":  # the norm below is ten times slower there
        return [
            tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float)) for tensor in tensors
        ]
    return list(torch._foreach_norm(tensors, math.inf))
