"""The gates of a few images, as plain tensors, and those of a whole split, batch by batch."""

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
    """A batch of N images, and what a network made of it; gates, hidden units by layer and call."""

    images: Tensor
    logits: Tensor
    labels: Tensor
    gates: list[list[Tensor]]
    hidden: list[list[Tensor]]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients, as the code is written; leave each module in its own mode."""
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
    """Keep this run out of what taps on the model are recording."""
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
    """Run the model for its hooks, which are gone afterwards; nothing else has changed."""
    try:
        with undisturbed(model), unheard(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def excitations(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the gates of any model on a batch of images, by the path of each SE module.

    A gate that varies over space is its mean over space; one that is called several times, the
    mean of the calls. The model is evaluated without gradients, compiled or not, and left as it
    was.

    Args:
        model: with gates of this package, timm or torchvision.
        images: what the model takes, N of them, on its device.

    Shape:
        (N, C) each, as in Figure 6 of the paper; C of a spatial gate is 1.

    Raises:
        ValueError: if the model has no squeeze-and-excitation module.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> gates = excitations(se_resnet20(ratio=4), torch.rand(2, 3, 32, 32))
        >>> len(gates), gates["layer3.2.se"].shape
        (9, torch.Size([2, 64]))
    """
    found = require_gates(model)
    # Hooks of its own: new taps would drop what is compiled.
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
            f"The forward pass calls no gate of {', '.join(silent)}; left out.", stacklevel=2
        )
    return {
        path: per_sample(each, found[path].channels, len(images))
        for path, each in calls.items()
        if each
    }


def record(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], taps: Taps
) -> Iterator[Recorded]:
    """Yield what a model, tapped, makes of each batch of images and labels.

    Raises:
        ValueError: if there is no batch.

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
