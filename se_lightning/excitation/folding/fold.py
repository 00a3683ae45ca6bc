"""Gates that never vary, folded into the weights around them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from se_lightning.excitation.folding.adjacent_layers import Neighbours
from se_lightning.excitation.taps import Taps, eager
from se_lightning.models import ConcurrentExcitation, find_excitations
from se_lightning.models.surgery.folded import gated_channels, put_in_place

__all__ = ["FoldReport", "FoldedGate", "fold_gates"]

# Gates as near to 1 are 1: what is left is rounding.
_ONE = 1e-6


@dataclass(frozen=True)
class FoldedGate:
    """What became of one gate.

    Attributes:
        layer: module path.
        spread: the largest distance of a gate from the mean of its channel, over all samples and
            channels; NaN where a gate was NaN or never called.
        low: the smallest of the channels' means.
        high: the largest.
        action: ``kept``, ``identity`` or ``scale``.
        into: paths of the layers that took the constant.
        reason: in words.
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
    """What became of the gates of a network.

    Attributes:
        gates: in order of definition.
        samples: how many images were seen.
        tolerance: up to which spread a gate counts as constant.
    """

    gates: tuple[FoldedGate, ...]
    samples: int
    tolerance: float

    @property
    def folded(self) -> dict[str, str]:
        """What stands in the gates' place, by path."""
        return {gate.layer: gate.action for gate in self.gates if gate.action != "kept"}

    @property
    def nearest(self) -> FoldedGate | None:
        """The gate with the smallest spread."""
        known = [gate for gate in self.gates if not math.isnan(gate.spread)]
        return min(known, key=lambda gate: gate.spread, default=None)

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} of {len(self.gates)} gates folded"]
        return "\n".join(lines + [f"{gate.layer}: {gate.reason}" for gate in self.gates])


def fold_gates(model: nn.Module, batches: Iterable[Tensor], tolerance: float = 0.01) -> FoldReport:
    """Take out, in place, the gates that do not vary over these images.

    A gate within ``tolerance`` of its channels' means, on every image, is replaced by them: they
    go into the norm or convolution before it, if nobody else reads that; else into the layers
    behind it, if all can take it; else they stay as a scale of the channels. The outputs stay the
    same, up to rounding, where the gate is exactly constant.

    Args:
        model: a network, not the LightningModule around it; evaluated in eval mode.
        batches: images, (N, C, H, W), on the model's device.
        tolerance: distance from the channel's mean.

    Raises:
        ValueError: if the tolerance is below 0, or there is no image.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> net = se_resnet20(ratio=4, gate_activation="double-sigmoid").eval()
        >>> len(fold_gates(net, [torch.rand(2, 3, 32, 32)]).folded)  # fresh, they are all 1
        9
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` (={tolerance}) must be at least 0.")
    training = model.training
    extremes, samples = _extremes(model.eval(), batches)
    if not samples:
        raise ValueError("`batches` must hold an image at least.")
    neighbours = Neighbours(model)
    gates = [_fold(model, path, extremes[path], tolerance, neighbours) for path in extremes]
    model.train(training)
    return FoldReport(tuple(gates), samples, tolerance)


def _extremes(
    model: nn.Module, batches: Iterable[Tensor]
) -> tuple[dict[str, tuple[Tensor, float]], int]:
    """Return, by gate, the channels' means, and the largest distance from them."""
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
    """Extremes and mean of each channel."""

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
) -> FoldedGate:
    mean, spread = extreme

    def say(action: str, reason: str, into: tuple[str, ...] = ()) -> FoldedGate:
        ends = float(mean.min()), float(mean.max())
        return FoldedGate(path, spread, *ends, action, into, reason)

    if math.isnan(spread):
        return say("kept", "left alone: it is never called, or NaN")
    if spread > tolerance:
        return say("kept", f"left alone: its gates are up to {spread:.3g} from their means")
    owner = model.get_submodule(path.rpartition(".")[0])
    if not path or isinstance(owner, ConcurrentExcitation):
        what = "is merged with another gate" if path else "is the whole network"
        return say("kept", f"left alone: constant within {spread:.2g}, but it {what}")
    parts = find_excitations(model)[path]
    weight: Tensor = parts.expand.weight  # type: ignore[assignment]
    scale = mean.expand(gated_channels(parts))
    put_in_place(model, path, None)
    if bool((scale - 1).abs().max() <= _ONE):
        return say("identity", "taken out: it is 1")
    if places := neighbours.of(path, scale):
        for place in places:
            place.take()
        into = tuple(place.path for place in places)
        return say("identity", f"folded into {', '.join(into)}", into)
    put_in_place(model, path, scale.to(weight.device, weight.dtype))
    return say("scale", "made a scale of its channels: no layer beside it can take it")
