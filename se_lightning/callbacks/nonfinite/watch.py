"""What of a run's loss and gradients was not finite first, kept on the device."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Found", "Watch"]

_NEVER = 1 << 40  # above any number of steps between two readings


class Found(NamedTuple):
    """The first bad step since the last reading, counted from 0 there.

    Args:
        step: of all ranks the first.
        gradients: names of the parameters whose gradients were bad, on any rank.
        loss: this rank's.
    """

    step: int
    gradients: list[str]
    loss: float


class Watch:
    """Looks at loss and gradients without waiting for the device; :meth:`read` waits.

    Args:
        model: whose parameters.
        device: where they are.
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
        """Take the loss of a batch: of a step's batches the first bad one counts, else the last."""
        self._loss = torch.where(self._loss.isfinite(), loss.detach().float(), self._loss)

    @torch.no_grad()
    def see_step(self, *, gradients: bool) -> None:
        """Take the gradients as they are now, and the loss of the batches since the last step.

        Args:
            gradients: whether they count.
        """
        wrong = self._fine
        if gradients and self.parameters:
            figures = _figures([self._gradient(p) for p in self.parameters])
            wrong = torch.stack(figures).isfinite().logical_not()
        bad = wrong.any() | self._loss.isfinite().logical_not()
        well = self._first < 0  # so far
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
        if hasattr(gradient, "to_local"):  # a shard's
            gradient = gradient.to_local()
        return gradient if gradient.numel() else self._zero

    def read(self, reduce: Callable[..., Tensor]) -> Found | None:
        """Return the first bad step since the last reading, None if all was well, and begin anew.

        Args:
            reduce: (tensor, reduce_op="max") to the largest of all ranks, who all read.
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
    """Return of each tensor a number that is finite if all of it is.

    None is a sum of squares, which overflows where the elements are far from it.
    """
    if tensors[0].device.type == "cpu":  # where the norm below takes ten times as long
        return [
            tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float)) for tensor in tensors
        ]
    return list(torch._foreach_norm(tensors, math.inf))
