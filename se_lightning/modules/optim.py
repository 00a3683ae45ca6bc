"""Parameter groups and learning-rate schedules, counted in optimizer steps."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from se_lightning.lightning import MisconfigurationException, OptimizerLRScheduler, Trainer

__all__ = [
    "cosine",
    "default_optimizer",
    "layers",
    "multi_step",
    "parameter_groups",
    "scale_rates",
    "scheduled",
]

# Functions of arguments that only the trainer knows, made with `functools.partial` or with
# `_partial_: true` in a config.
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[..., Any]


def parameter_groups(
    model: nn.Module, *, decay_norm_bias: bool = True, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the trained parameters in groups; frozen ones are left out.

    Parameters with at most one dimension count as biases and norms; gates keep their decay.

    Args:
        model: The network.
        decay_norm_bias: False gives biases and norms a group with ``weight_decay=0``.
        layer_decay: Factor of the learning rate from each layer to the one below it, above 0 and
            at most 1; the last layer, the classifier, has the full rate. A layer is a child of the
            network, or of one of its sequences (a residual unit), with the norms that follow it.
            The groups hold the product as ``lr_scale``.

    Raises:
        ValueError: If ``layer_decay`` is not above 0 and at most 1.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
        >>> [len(group["params"]) for group in parameter_groups(model, decay_norm_bias=False)]
        [2, 4]
        >>> groups = parameter_groups(model, layer_decay=0.5)
        >>> [(group["lr_scale"], len(group["params"])) for group in groups]
        [(0.5, 4), (1.0, 2)]
    """
    groups: list[dict[str, Any]] = []
    if layer_decay is None:
        groups.append({"params": list(model.parameters())})
    elif isinstance(layer_decay, bool) or not 0 < layer_decay <= 1:
        raise ValueError(f"`layer_decay` (={layer_decay!r}) must be above 0 and at most 1.")
    else:
        below = layers(model)[::-1]
        scales = [layer_decay**depth for depth in range(len(below))]
        pairs = zip(below, scales, strict=True)
        groups = [{"params": params, "lr_scale": scale} for params, scale in pairs][::-1]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    if not decay_norm_bias:
        groups = [part for group in groups for part in _by_dimension(group)]
    return [group for group in groups if group["params"]]


def _by_dimension(group: dict[str, Any]) -> list[dict[str, Any]]:
    params = group["params"]
    return [
        {**group, "params": [p for p in params if p.ndim > 1]},
        {**group, "params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer in order of definition, starting at the images."""
    found = [list(model.parameters(recurse=False))]
    for child in model.children():
        for layer in child.children() if type(child) is nn.Sequential else [child]:
            params = list(layer.parameters())
            if all(p.ndim <= 1 for p in params):
                found[-1] += params  # a norm, or no parameters
            elif not any(p.ndim > 1 for p in found[-1]):
                found[-1] += params
            else:
                found.append(params)
    return found


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply each group's learning rate by its ``lr_scale``.

    Raises:
        ValueError: If ``optimizer`` is not a torch optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"`optimizer` returns a {type(optimizer).__name__}, not a torch optimizer."
        )
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)


def default_optimizer(groups: Any) -> Optimizer:
    """Return SGD with Nesterov momentum 0.9, learning rate 0.1 and weight decay 1e-4."""
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def scheduled(
    optimizer: Optimizer, factory: SchedulerFactory, trainer: Trainer
) -> OptimizerLRScheduler:
    """Return an optimizer with its scheduler, which advances per step if it takes the run's length.

    Raises:
        MisconfigurationException: If the scheduler needs that length and the run is unlimited.
    """
    if "total_steps" not in (wanted := inspect.signature(factory).parameters):
        scheduler = factory(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": _monitoring(scheduler, trainer)}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
    trainer.fit_loop.setup_data()  # so that num_training_batches is known
    total_steps = trainer.estimated_stepping_batches
    if math.isinf(total_steps):
        raise MisconfigurationException(
            "A learning rate schedule needs the run's length: set `max_epochs` or `max_steps`."
        )
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    known = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    given = {k for k, v in getattr(factory, "keywords", {}).items() if v is not None}
    if "epochs" in given:
        given.add("total_steps")  # OneCycleLR takes either
    lacking = {k: v for k, v in known.items() if k in wanted and k not in given}
    scheduler = factory(optimizer, **lacking)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _monitoring(scheduler: ReduceLROnPlateau, trainer: Trainer) -> Any:
    """Return a scheduler of a metric: the validation's loss or accuracy, or the training's."""
    split = "val" if trainer.enable_validation else "train"
    metric = "acc1" if scheduler.mode == "max" else "loss"
    every = trainer.check_val_every_n_epoch or 1 if split == "val" else 1
    return {"scheduler": scheduler, "monitor": f"{split}/{metric}", "frequency": every}


def _ramp(warmup_epochs: float, total_steps: float, steps_per_epoch: int) -> float:
    """Return the length of the warm-up in steps, at most half of the run."""
    if not warmup_epochs >= 0:
        raise ValueError(f"`warmup_epochs` (={warmup_epochs}) must not be negative.")
    ramp = warmup_epochs * steps_per_epoch
    if ramp > total_steps / 2:
        warnings.warn(
            f"A warm-up of {warmup_epochs:g} epochs is shortened to half of this run's "
            f"{total_steps} steps.",
            stacklevel=3,
        )
    return min(ramp, total_steps / 2)


def _warm_up(step: int, ramp: float) -> float:
    """Return the factor of the linear ramp, which is above 0 in the first step."""
    return min(1.0, (step + 1) / ramp) if ramp > 0 else 1.0


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    min_factor: float = 0.0,
) -> LambdaLR:
    """Ramp up linearly for ``warmup_epochs``, then decay along half a cosine until the run ends.

    Args:
        optimizer: Optimizer whose learning rates are the peaks.
        total_steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps of an epoch.
        warmup_epochs: Length of the ramp in epochs; fractions are allowed.
        min_factor: Final learning rate as a fraction of the peak.

    Raises:
        ValueError: If the run's length is infinite, the ramp's is negative, or ``min_factor`` is
            not in [0, 1].

    Reference:
        Loshchilov and Hutter, arXiv:1608.03983; Goyal et al., arXiv:1706.02677 (warm-up).
    """
    if not math.isfinite(total_steps):
        raise ValueError("A cosine schedule needs the run's length: set `trainer.max_epochs`.")
    if not 0 <= min_factor <= 1:
        raise ValueError(f"`min_factor` (={min_factor}) must be a fraction, from 0 to 1.")
    ramp = _ramp(warmup_epochs, total_steps, steps_per_epoch)

    def factor(step: int) -> float:
        if step < ramp:
            return _warm_up(step, ramp)
        progress = min(1.0, (step - ramp) / (total_steps - ramp))
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def multi_step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """Multiply the learning rate by ``gamma`` at each milestone.

    Args:
        optimizer: Optimizer whose learning rates are the initial values.
        total_steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps of an epoch.
        milestones: Epochs of the drops, ascending; fractions are allowed.
        gamma: Factor of each drop.
        warmup_epochs: Length of a linear ramp at the start, in epochs.

    Raises:
        ValueError: If the milestones do not ascend, the ramp's length is negative, or ``gamma`` is
            not above 0.

    Reference:
        Footnote 2 of arXiv:1709.01507: drops at 125, 200 and 250 of 270 epochs.
    """
    if not gamma > 0:
        raise ValueError(f"`gamma` (={gamma}) must be above 0: the rate is multiplied by it.")
    drops = [milestone * steps_per_epoch for milestone in milestones]
    if drops != sorted(set(drops)) or (drops and drops[0] <= 0):
        raise ValueError(f"`milestones` (={list(milestones)}) must be above 0 and ascend.")
    if drops and drops[-1] >= total_steps:
        warnings.warn(
            f"The last drop, after {milestones[-1]:g} epochs, is beyond the end of this run of "
            f"{total_steps / steps_per_epoch:g} epochs.",
            stacklevel=2,
        )
    ramp = _ramp(warmup_epochs, total_steps, steps_per_epoch)

    def factor(step: int) -> float:
        return _warm_up(step, ramp) * gamma ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, factor)
