"""Histograms of gate values, counted on the device and summed over ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torchmetrics import Metric

__all__ = ["GateHistogram", "draw_histogram"]


class GateHistogram(Metric):
    """Counts the gate values of each layer in fixed bins on [0, upper].

    Bins are half-open but for the last, which holds the upper end too. NaN and what lies outside
    are counted apart, so that nothing gets lost: a layer's row adds up to the number of its values.
    Fixed edges make layers, epochs and runs comparable.

    Args:
        layers: names of the layers, L of them.
        bins: number of bins, B.
        upper: upper end of the bins: 1, or 2 for gates that are twice a sigmoid.

    Shape:
        ``compute()`` is (L, B + 2): the bins, then NaN, then what lies outside.

    Example:
        >>> histogram = GateHistogram(["layer1.0.se"], bins=4)
        >>> histogram.update(0, torch.tensor([0.1, 0.3, 0.3, 1.0, 2.0, float("nan")]))
        >>> histogram.compute().tolist()
        [[1, 2, 0, 1, 1, 1]]
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, layers: Sequence[str], bins: int = 64, upper: float = 1.0) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"`bins` (={bins}) must be at least 1.")
        self.layers = tuple(layers)
        self.bins = bins
        self.upper = upper
        self.edges = np.linspace(0, upper, bins + 1)
        # One tensor, and so one reduction over ranks.
        zeros = torch.zeros(len(self.layers), bins + 2, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, layer: int, values: Tensor) -> None:
        """Count the gate values, of any shape, of the layer with this index."""
        # histc drops NaN and what lies outside; in half precision its counts would be rounded.
        inside = torch.histc(values.float(), self.bins, 0, self.upper).long()
        nan = values.isnan().sum()
        outside = values.numel() - inside.sum() - nan
        self.counts[layer] += torch.cat([inside, torch.stack([nan, outside])])

    def compute(self) -> Tensor:
        """Return the counts, summed over ranks."""
        return self.counts


def draw_histogram(
    layers: Sequence[str], counts: np.ndarray, title: str, upper: float = 1.0
) -> Figure:
    """Draw depth against gate value: a row a layer, its colour the share of the layer's gates.

    Args:
        layers: names of the layers, first to last.
        counts: (L, B) over equal bins on [0, upper].
        title: heading.
        upper: upper end of the bins.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        share,
        aspect="auto",
        extent=(0, upper, len(layers), 0),
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
