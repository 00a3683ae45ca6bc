"""Folding of constant gates into the surrounding weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from se_lightning.excitation.folding.adjacent_layers import Neighbours
from se_lightning.excitation.taps import Taps, eager
from se_lightning.models import find_excitations
from se_lightning.models.layers.gate_base import Gate
from se_lightning.models.surgery.folded import gated_channels, put_in_place

__all__ = ["FoldReport", "FoldedGate", "fold_gates"]

_ONE = 1e-6  # gates this close to 1 differ from it only by rounding


@dataclass(frozen=True)
class FoldedGate:
    """Result for one gate.

    Attributes:
        layer: Module path.
        spread: Largest distance of a gate from the mean of its channel, over all samples and
            channels; NaN if a gate was NaN or never executed.
        low: Smallest channel mean.
        high: Largest channel mean.
        action: ``kept``, ``identity`` or ``scale``.
        into: Paths of the layers that absorbed the constant.
        reason: Explanation.
    """

    layer: str
    spread: float
    low: float
    high: float
    action: str
    into: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """Results for all gates of a network.

    Attributes:
        gates: Gates in order of definition.
        samples: Number of images.
        tolerance: Largest spread of a gate that counts as constant.
    """

    gates: tuple[FoldedGate, ...]
    samples: int
    tolerance: float

    @property
    def folded(self) -> dict[str, str]:
        """Action by path, for the gates that were folded."""
        return {gate.layer: gate.action for gate in self.gates if gate.action != "kept"}

    @property
    def nearest(self) -> FoldedGate | None:
        """The gate with the smallest spread."""
        known = [gate for gate in self.gates if not math.isnan(gate.spread)]
        return min(known, key=lambda gate: gate.spread, default=None)

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} of {len(self.gates)} gates folded"]
        return "\n".join(lines + [f"{gate.layer}: {gate.reason}" for gate in self.gates])


def fold_gates(
    model: nn.Module, batches: Iterable[Tensor], tolerance: float = 0.01, *, prefix: str = ""
) -> FoldReport:
    """Replace gates that are constant over these images, in place.

    A gate whose values are all within ``tolerance`` of their channel's mean is replaced by these
    means. They are folded into the preceding norm or convolution if only the gate reads its output,
    or else into the following layers if all of them can absorb a scale; otherwise they are kept as
    a channel scale. The outputs are unchanged up to rounding if the gate is exactly constant.

    Args:
        model: A network, not the LightningModule around it; evaluated in eval mode.
        batches: Images, (N, C, H, W), on the model's device.
        tolerance: Largest distance of a constant gate from its channel's mean.
        prefix: Path of the network in the module around it, with a dot, for the report.

    Raises:
        ValueError: If `tolerance` is negative, or there are no images.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> net = se_resnet20(ratio=4, gate_activation="double-sigmoid").eval()
        >>> len(fold_gates(net, [torch.rand(2, 3, 32, 32)]).folded)  # initially, all gates are 1
        9
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` (={tolerance}) must be at least 0.")
    training = model.training
    extremes, samples = _extremes(model.eval(), batches)
    if not samples:
        raise ValueError("`batches` must contain at least one image.")
    neighbours = Neighbours(model)
    gates = [_fold(model, path, extremes[path], tolerance, neighbours, prefix) for path in extremes]
    model.train(training)
    return FoldReport(tuple(gates), samples, tolerance)


def _extremes(
    model: nn.Module, batches: Iterable[Tensor]
) -> tuple[dict[str, tuple[Tensor, float]], int]:
    """Return the channels' means and the largest distance from them, by gate."""
    samples = 0
    with Taps(model) as taps, eager(), torch.no_grad():
        taps.record()
        seen = [_Range(channels) for channels in taps.channels]
        for images in batches:
            model(images)
            samples += len(images)
            for each, calls in zip(seen, taps.take()[0], strict=True):
                for call in calls:
                    each.add(call)
        return {path: each.result() for path, each in zip(taps.layers, seen, strict=True)}, samples


class _Range:
    """Minimum, maximum and mean of each channel."""

    def __init__(self, channels: int) -> None:
        self.low = torch.full((channels,), math.inf, dtype=torch.float64)
        self.high, self.sum = -self.low, torch.zeros_like(self.low)
        self.count = 0

    def add(self, gates: Tensor) -> None:
        values = gates.detach().double().cpu().reshape(len(gates), len(self.low), -1)
        if not values.numel():
            return
        self.low = torch.minimum(self.low, values.amin((0, 2)))
        self.high = torch.maximum(self.high, values.amax((0, 2)))
        self.sum += values.sum((0, 2))
        self.count += values.shape[0] * values.shape[2]

    def result(self) -> tuple[Tensor, float]:
        mean = self.sum / self.count if self.count else self.sum * math.nan
        return mean, float(torch.maximum(self.high - mean, mean - self.low).max())


def _fold(
    model: nn.Module,
    path: str,
    extreme: tuple[Tensor, float],
    tolerance: float,
    neighbours: Neighbours,
    prefix: str,
) -> FoldedGate:
    mean, spread = extreme

    def result(action: str, reason: str, into: tuple[str, ...] = ()) -> FoldedGate:
        ends = float(mean.min()), float(mean.max())
        return FoldedGate(prefix + path, spread, *ends, action, into, reason)

    if math.isnan(spread):
        return result("kept", "kept: never executed, or NaN")
    if spread > tolerance:
        return result("kept", f"kept: gates are up to {spread:.3g} from their means")
    owner = model.get_submodule(path.rpartition(".")[0])
    if not path or isinstance(owner, Gate):
        what = "is merged with another gate" if path else "is the whole network"
        return result("kept", f"kept: constant within {spread:.2g}, but it {what}")
    parts = find_excitations(model)[path]
    weight: Tensor = parts.expand.weight  # type: ignore[assignment]
    scale = mean.expand(gated_channels(parts))
    put_in_place(model, path, None)
    if bool((scale - 1).abs().max() <= _ONE):
        return result("identity", "removed: all gates are 1")
    if places := neighbours.of(path, scale):
        for place in places:
            place.absorb()
        into = tuple(prefix + place.path for place in places)
        return result("identity", f"folded into {', '.join(into)}", into)
    put_in_place(model, path, scale.to(weight.device, weight.dtype))
    return result("scale", "replaced by a channel scale: no adjacent layer can absorb it")
