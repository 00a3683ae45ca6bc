"""Pictures of gates by depth: histograms of their values, and their means over epochs."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["draw_epochs", "draw_histogram", "is_dark"]


def is_dark() -> bool:
    """Tell whether the style in force draws light on dark."""
    return sum(to_rgb(matplotlib.rcParams["text.color"])) > 1.5


def draw_histogram(
    layers: Sequence[str], counts: np.ndarray, title: str, lower: float = 0.0, upper: float = 1.0
) -> Figure:
    """Draw depth against gate value: a row a layer, its colour the share of the layer's gates.

    Args:
        layers: names of the layers, first to last.
        counts: (L, B) over equal bins on [lower, upper].
        title: heading.
        lower: lower end of the bins.
        upper: upper end of the bins.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        share,
        aspect="auto",
        extent=(lower, upper, len(layers), 0),
        cmap="magma" if is_dark() else "magma_r",
        # The square root: a layer whose gates spread over all values stays visible beside one
        # whose gates sit in two bins.
        norm=PowerNorm(0.5, vmin=0),
        interpolation="nearest",
    )
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
    axes.set_yticks(np.arange(1, len(layers)), minor=True)
    axes.grid(visible=False)  # what a style may have drawn
    gap = matplotlib.rcParams["axes.facecolor"]
    axes.grid(visible=True, which="minor", axis="y", color=gap, linewidth=1.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("gate value (0: the channel is shut, 1: it passes unchanged)", fontsize=9)
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the layer's gates", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_epochs(
    layers: Sequence[str], epochs: Sequence[float], means: np.ndarray, title: str
) -> Figure:
    """Draw depth against epochs: a row a layer, a column a validation, its colour the mean gate.

    Args:
        layers: names of the layers, first to last, L of them.
        epochs: trained before each validation, E of them; fractions too.
        means: (E, L), the layers' mean gates; NaN is left blank.
        title: heading.
    """
    count = len(epochs)
    figure = Figure(figsize=(7.5, 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    shown = np.ma.masked_invalid(np.asarray(means, dtype=float).T)
    ends = (0, 1) if shown.mask.all() else (None, None)
    image = axes.imshow(
        shown, aspect="auto", cmap="viridis", interpolation="nearest", vmin=ends[0], vmax=ends[1]
    )
    axes.grid(visible=False)
    axes.set_yticks(np.arange(len(layers)), layers, fontsize=8)
    ticks = range(0, count, -(-count // 16))  # at most 16
    axes.set_xticks(ticks, [f"{epochs[k]:.4g}" for k in ticks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("epochs trained", fontsize=9)
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image)
    bar.set_label("mean gate of the layer", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure
