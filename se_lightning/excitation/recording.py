"""Recording of gates: for a few images as plain tensors, and for a split batch by batch."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_lightning.excitation.taps import Taps, eager, per_sample, require_gates

__all__ = ["Recorded", "excitations", "record", "run_once", "undisturbed", "unheard"]


class Recorded(NamedTuple):
    """N images, the network's logits for them, and its gates and hidden units by layer and call."""

    images: Tensor
    logits: Tensor
    labels: Tensor
    gates: list[list[Tensor]]
    hidden: list[list[Tensor]]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients or compilation, and restore each module's mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), eager():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def unheard(model: nn.Module) -> Iterator[None]:
    """Hide the forward passes in this context from taps that are recording."""
    tapped = [module for module in model.modules() if "_tapped" in vars(module)]
    records = [module._tapped for module in tapped]
    try:
        for module in tapped:
            module._tapped = None  # type: ignore[assignment]
        yield
    finally:
        for module, recorded in zip(tapped, records, strict=True):
            module._tapped = recorded


def run_once(model: nn.Module, images: Tensor, handles: Sequence[RemovableHandle]) -> None:
    """Run the model once to call its hooks, then remove them."""
    try:
        with undisturbed(model), unheard(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def excitations(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the gates of any model on a batch of images, by the path of each SE module.

    Gates are averaged over space and over the calls of a module. The model is evaluated without
    gradients and left unchanged, even if it is compiled.

    Args:
        model: Model with gates of this package, timm or torchvision.
        images: Input of the model, N images on its device.

    Shape:
        (N, C) each, as in Figure 6 of the paper. A spatial gate has C = 1.

    Raises:
        ValueError: If the model has no squeeze-and-excitation module.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> gates = excitations(se_resnet20(ratio=4), torch.rand(2, 3, 32, 32))
        >>> len(gates), gates["layer3.2.se"].shape
        (9, torch.Size([2, 64]))
    """
    found = require_gates(model)
    # Not taps, which would discard compiled code.
    calls: dict[str, list[Tensor]] = {path: [] for path in found}
    handles = [
        parts.gate.register_forward_hook(
            lambda module, inputs, output, path=path: calls[path].append(output)
        )
        for path, parts in found.items()
    ]
    run_once(model, images, handles)
    silent = [path for path, each in calls.items() if not each]
    if silent:
        warnings.warn(
            f"Gates left out, since the forward pass never executes them: {', '.join(silent)}.",
            stacklevel=2,
        )
    return {
        path: per_sample(each, found[path].channels, len(images))
        for path, each in calls.items()
        if each
    }


def record(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], taps: Taps
) -> Iterator[Recorded]:
    """Yield the outputs and gates of a tapped model for each batch of images and labels.

    Raises:
        ValueError: If there are no batches.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> net = se_resnet20(ratio=4)
        >>> batch = torch.rand(2, 3, 32, 32), torch.tensor([3, 1])
        >>> with Taps(net) as taps:
        ...     [recorded] = record(net, [batch], taps)
        >>> recorded.logits.shape, recorded.gates[8][0].shape
        (torch.Size([2, 10]), torch.Size([2, 64, 1, 1]))
    """
    taps.record()
    labels = None
    for images, labels in batches:
        with undisturbed(model):
            logits = model(images)
        yield Recorded(images, logits, labels, *taps.take())
    taps.pause()
    if labels is None:
        raise ValueError("`split` has no images.")
