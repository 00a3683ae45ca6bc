"""Running the steps of a network with or without gradient checkpointing."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from se_lightning.models.layers.units import is_stack

__all__ = ["checkpoint_gradients", "run", "run_checkpointed"]

Step = Callable[[Tensor], Tensor]


def run(steps: Sequence[Step], x: Tensor) -> Tensor:
    """Run modules one after another."""
    for step in steps:
        x = step(x)
    return x


def run_checkpointed(steps: Sequence[Step], x: Tensor) -> Tensor:
    """Run modules one after another, and rerun them to compute their gradients.

    Each unit of a stack is checkpointed, and so are the modules between two stacks, together.
    """
    for part in _parts(steps):
        x = _run_part(part, x)
    return x


def _run_part(part: Sequence[Step], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # Compiled code recomputes activations only, and so updates running statistics once.
        return checkpoint(run, part, x, use_reentrant=False)
    recomputing = getattr(getattr(part[0], "_compiled_call_impl", None), "recomputing", None)
    if recomputing is not None:  # of a unit that was compiled by itself
        return recomputing(x)
    norms = [
        module
        for step in part
        if isinstance(step, nn.Module)
        for module in step.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    contexts = partial(_first_and_second, norms)
    return checkpoint(run, part, x, use_reentrant=False, context_fn=contexts)


Contexts = contextlib.AbstractContextManager


def _first_and_second(norms: Sequence[_BatchNorm]) -> tuple[Contexts, Contexts]:
    return contextlib.nullcontext(), _counted_already(norms)


def _parts(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    between: list[Step] = []
    for step in steps:
        # Single layers may work in place and are not split.
        if isinstance(step, nn.Sequential) and is_stack(step):
            if between:
                yield between
            yield from ([unit] for unit in step)
            between = []
        else:
            between.append(step)
    if between:
        yield between


@contextlib.contextmanager
def _counted_already(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Keep the second run of a batch from updating the running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Recompute the units of a network for their gradients.

    Raises:
        ValueError: If the network does not support it.
    """
    switch = getattr(backbone, "set_grad_checkpointing", None)  # this package's and timm's
    if switch is None:
        raise ValueError(
            f"`grad_checkpointing` needs a network that supports it; {type(backbone).__name__} has "
            "no set_grad_checkpointing."
        )
    switch(True)
