"""Accuracy when gates are replaced, without retraining."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from se_lightning.arguments import one_of
from se_lightning.excitation.statistics import ExcitationStatistics
from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.excitation.taps import Taps, eager, require_gates
from se_lightning.models import find_gates
from se_lightning.models.layers.head import predicted

__all__ = [
    "ALL_BLOCKS",
    "REPLACEMENTS",
    "Batches",
    "WhatIfRow",
    "drops_by_block",
    "replaced",
    "stages",
    "what_if",
]

REPLACEMENTS = {
    "one": "1",
    "data_mean": "the mean of their channel over the split",
    "class_mean": "the mean of their channel over the images of the same class",
    "shuffle": "the gates of another image in the batch",
}
ALL_BLOCKS = "all blocks"
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Replacement = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WhatIfRow:
    """Result of one experiment.

    Attributes:
        block: Path of an SE module or a stage, or ``all blocks``; empty for the baseline.
        replacement: Replacement of its gates; ``none`` for the baseline, which is the first row.
        acc1: Top-1 accuracy, a fraction.
        drop: Accuracy of the baseline minus this one.
        samples: Number of images.
        gates: Number of gates replaced at once.
    """

    block: str
    replacement: str
    acc1: float
    drop: float
    samples: int
    gates: int = 1


@contextmanager
def replaced(model: nn.Module, replacements: Mapping[str, Replacement]) -> Iterator[None]:
    """Replace the outputs of gates in this context; compiled networks run uncompiled meanwhile.

    Args:
        model: Model with gates that :func:`find_gates` finds.
        replacements: Function from gates to gates of the same shape, by path of the SE module.

    Raises:
        ValueError: If there is no such module.

    Example:
        >>> from se_lightning.models import SqueezeExcitation
        >>> net = nn.Sequential(SqueezeExcitation(4, 2))
        >>> x = torch.rand(1, 4, 2, 2)
        >>> with replaced(net, {"0": torch.ones_like}):
        ...     torch.equal(net(x), x)
        True
    """
    gates = find_gates(model)
    for path in replacements:
        if path not in gates:
            raise ValueError(f"`replacements`: no gate {path!r}. Gates: {', '.join(gates)}.")
    with ExitStack() as stack:
        stack.enter_context(eager())
        for path, replacement in replacements.items():
            handle = gates[path].register_forward_hook(
                lambda module, inputs, output, new=replacement: new(output)
            )
            stack.callback(handle.remove)
        yield


def stages(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return the gates of each stage, grouped by the first part of their paths that differs.

    Empty if this gives one stage in total, or one per gate.

    Args:
        layers: Paths of the SE modules.

    Example:
        >>> stages(["net.layer1.0.se", "net.layer1.1.se", "net.layer2.0.se"])
        {'net.layer1': ['net.layer1.0.se', 'net.layer1.1.se'], 'net.layer2': ['net.layer2.0.se']}
    """
    parts = [layer.split(".") for layer in layers]
    common = 0
    while len({tuple(part[: common + 1]) for part in parts}) == 1 and common < len(parts[0]):
        common += 1
    found: dict[str, list[str]] = {}
    for layer, part in zip(layers, parts, strict=True):
        found.setdefault(".".join(part[: common + 1]), []).append(layer)
    return found if 1 < len(found) < len(layers) else {}


def what_if(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    replacements: Sequence[str] = tuple(REPLACEMENTS),
    *,
    device: torch.device | None = None,
    seed: int = 0,
) -> list[WhatIfRow]:
    """Measure the accuracy when the gates of each block, each stage, and all blocks are replaced.

    A gate that varies over space is replaced by its mean over space, except by ``shuffle``. In a
    batch of one image, ``shuffle`` has no effect.

    Args:
        model: Model in eval mode that maps images to logits.
        batches: Called twice; must yield the same images and labels, (N,) integers, both times.
        num_classes: Number of classes, K.
        replacements: Keys of REPLACEMENTS.
        device: Device to move the images to. None leaves them where they are.
        seed: Seed of the shuffling, which is the same for all blocks.

    Returns:
        The baseline, then one row per block and replacement, per stage if there are several, and
        for all blocks at once.

    Raises:
        ValueError: If there are no gates or no images, or a replacement does not exist.
    """
    if not replacements:
        raise ValueError(f"`replacements` must name at least one of {', '.join(REPLACEMENTS)}.")
    for name in replacements:
        one_of("replacements", name, REPLACEMENTS)
    layers = list(require_gates(model))
    with eager(), torch.no_grad():
        right, summary = _baseline(model, _on(batches, device), num_classes)
        means = _means(summary, num_classes)
        blocks = {path: [path] for path in layers} | stages(layers) | {ALL_BLOCKS: layers}
        totals = {(block, name): 0.0 for block in blocks for name in replacements}
        generator = torch.Generator().manual_seed(seed)
        for images, labels in _on(batches, device):
            make = _Maker(means, labels, generator)
            for block, name in totals:
                wanted = {path: make(name, path) for path in blocks[block]}
                with replaced(model, wanted):
                    totals[block, name] += _right(model(images), labels)
    samples = int(summary.samples.sum(axis=0).max())
    rows = [WhatIfRow("", "none", right / samples, 0.0, samples)]
    for (block, name), count in totals.items():
        drop, gates = (right - count) / samples, len(blocks[block])
        rows.append(WhatIfRow(block, name, count / samples, drop, samples, gates))
    return rows


def drops_by_block(rows: Sequence[WhatIfRow]) -> dict[str, dict[str, float]]:
    """Return the drop of each replacement, in percentage points, by block."""
    drops: dict[str, dict[str, float]] = {}
    for row in rows[1:]:
        drops.setdefault(row.block, {})[row.replacement] = 100 * row.drop
    return drops


def _on(batches: Batches, device: torch.device | None) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches():
        yield (images, labels) if device is None else (images.to(device), labels.to(device))


def _right(logits: Tensor, labels: Tensor) -> float:
    return float((predicted(logits) == labels).sum())


def _baseline(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> tuple[float, ExcitationSummary]:
    right, count = 0.0, 0
    with Taps(model) as taps:
        taps.record()
        statistics = ExcitationStatistics(
            taps.layers, taps.channels, bins=1, classes=range(num_classes)
        )
        for images, labels in batches:
            statistics.on(images.device)
            right += _right(model(images), labels)
            count += len(labels)
            statistics.update(taps.take()[0], labels=labels.to(statistics.totals.device))
    if not count:
        raise ValueError("`batches` must contain at least one image.")
    return right, statistics.summary()


def _means(summary: ExcitationSummary, num_classes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean of each channel, (C,), and of each class, (K, C), by layer."""
    of_classes = np.stack([summary.mean(label) for label in range(num_classes)])
    both = [torch.from_numpy(means).float() for means in (summary.mean(), of_classes)]
    parts = {path: summary.of(layer) for layer, path in enumerate(summary.layers)}
    return {path: (both[0][part], both[1][:, part]) for path, part in parts.items()}


class _Maker:
    """Replacements for one batch."""

    def __init__(
        self, means: dict[str, tuple[Tensor, Tensor]], labels: Tensor, generator: torch.Generator
    ) -> None:
        self.means, self.labels = means, labels
        # One cycle through a random order, so that no image gets its own gates.
        order = torch.randperm(len(labels), generator=generator)
        self.donors = torch.empty_like(order)
        self.donors[order] = order.roll(1)

    def __call__(self, name: str, path: str) -> Replacement:
        if name == "one":
            return torch.ones_like
        if name == "shuffle":
            return self._shuffled
        mean, of_classes = (each.to(self.labels.device) for each in self.means[path])
        values = of_classes[self.labels]
        if name == "data_mean":
            values = mean.expand_as(values)
        return lambda gates: _like(values, gates)

    def _shuffled(self, gates: Tensor) -> Tensor:
        # A sample may have several rows (the frames of a video).
        samples = gates.unflatten(0, (len(self.labels), -1))
        return samples[self.donors.to(gates.device)].flatten(0, 1)


def _like(values: Tensor, gates: Tensor) -> Tensor:
    """Reshape values, (N, C), to gates whose channels are the second or the last dimension."""
    values = values.repeat_interleave(len(gates) // len(values), 0).to(gates)
    space = [1] * (gates.ndim - 2)
    last = gates.ndim > 2 and gates.shape[1] != values.shape[1]
    shape = [len(values), *space, -1] if last else [len(values), -1, *space]
    return values.reshape(shape).expand_as(gates)
