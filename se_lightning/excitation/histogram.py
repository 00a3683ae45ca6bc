"""Histograms of gate values, counted on the device and summed over ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torchmetrics import Metric

__all__ = ["GateCounts", "GateHistogram", "draw_histogram"]


class GateCounts(NamedTuple):
    """Counts of gate values: ``bins`` (L, B), and (L,) each of ``nan`` and ``outside`` [0, 1]."""

    bins: Tensor
    nan: Tensor
    outside: Tensor


class GateHistogram(Metric):
    """Counts the gate values of each layer in fixed bins on [0, 1].

    Bins are half-open but for the last, which holds 1.0 too. NaN and what lies outside are
    counted apart, so that nothing gets lost: for each layer bins, nan and outside add up to the
    number of values. Fixed edges make layers, epochs and runs comparable.

    Args:
        layers: names of the layers, L of them.
        bins: number of bins, B.

    Example:
        >>> histogram = GateHistogram(["layer1.0.se"], bins=4)
        >>> histogram.update(0, torch.tensor([0.1, 0.3, 0.3, 1.0, 2.0, float("nan")]))
        >>> [count.tolist() for count in histogram.compute()]
        [[[1, 2, 0, 1]], [1], [1]]
    """

    full_state_update = False
    bins: Tensor
    nan: Tensor
    outside: Tensor

    def __init__(self, layers: Sequence[str], bins: int = 64) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"`bins` (={bins}) must be at least 1.")
        self.layers = tuple(layers)
        self.edges = np.linspace(0, 1, bins + 1)
        depth = len(self.layers)
        for state, shape in (("bins", (depth, bins)), ("nan", (depth,)), ("outside", (depth,))):
            self.add_state(state, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, layer: int, values: Tensor) -> None:
        """Count the gate values, of any shape, of the layer with this index."""
        # histc has no kernel for half precision on a CPU, and none on any device that waits.
        counts = torch.histc(values.float(), self.bins.shape[1], 0, 1).long()
        nan = values.isnan().sum()
        self.bins[layer] += counts
        self.nan[layer] += nan
        self.outside[layer] += values.numel() - counts.sum() - nan

    def compute(self) -> GateCounts:
        """Return the counts, summed over ranks."""
        return GateCounts(self.bins, self.nan, self.outside)


def draw_histogram(layers: Sequence[str], counts: np.ndarray, title: str) -> Figure:
    """Draw depth against gate value: a row a layer, its colour the share of the layer's gates.

    Args:
        layers: names of the layers, first to last.
        counts: (L, B) over equal bins on [0, 1].
        title: heading.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        share,
        aspect="auto",
        extent=(0, 1, len(layers), 0),
        cmap="magma_r",
        # The square root: a layer whose gates spread over all values stays visible beside one
        # whose gates sit in two bins.
        norm=PowerNorm(0.5, vmin=0),
        interpolation="nearest",
    )
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
    axes.set_yticks(np.arange(1, len(layers)), minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=1.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_xlabel("gate value (0: the channel is shut, 1: it passes unchanged)", fontsize=9)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, format=PercentFormatter(1, decimals=0)).set_label(
        "share of the layer's gates", fontsize=9
    )
    return figure
