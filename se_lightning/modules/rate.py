"""The learning rate that a search has found."""

from typing import Any

from torch.optim import Optimizer

__all__ = ["set_rate"]


def set_rate(optimizer: Optimizer, rate: float | None, scheduler: Any = None) -> None:
    """Set the learning rate of each group, times its ``lr_scale``.

    Args:
        optimizer: The optimizer.
        rate: The rate; None changes nothing.
        scheduler: The scheduler of the optimizer, not yet advanced, whose factors then apply to the
            new rate; None if there is none. ``OneCycleLR`` and ``CyclicLR`` keep their own rates.
    """
    if rate is None:
        return
    old = list(getattr(scheduler, "base_lrs", []))
    for index, group in enumerate(optimizer.param_groups):
        if scheduler is not None and "max_lr" in group:
            group["lr"] = scheduler.get_last_lr()[index]
            continue
        group["lr"] = rate * group.get("lr_scale", 1.0)
        if index < len(old):
            factor = scheduler.get_last_lr()[index] / old[index] if old[index] else 1.0
            scheduler.base_lrs[index] = group["initial_lr"] = group["lr"]
            group["lr"] *= factor
