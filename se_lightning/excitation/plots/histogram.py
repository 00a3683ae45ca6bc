"""Plots of gate values by depth: histograms, and means over epochs."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from se_lightning.excitation.plots.names import legible, plain_text

__all__ = ["draw_epochs", "draw_histogram", "is_dark"]


def is_dark() -> bool:
    """Return whether the current matplotlib style has light text on a dark background."""
    return sum(to_rgb(matplotlib.rcParams["text.color"])) > 1.5


@plain_text
def draw_histogram(
    layers: Sequence[str], counts: np.ndarray, title: str, lower: float = 0.0, upper: float = 1.0
) -> Figure:
    """Draw depth against gate value, one row per layer, colored by the share of the layer's gates.

    Args:
        layers: Names of the L layers, first to last.
        counts: Counts in B equal bins on [lower, upper], (L, B).
        title: Title of the figure.
        lower: Lower end of the bins.
        upper: Upper end of the bins.
    """
    layers, title = list(map(legible, layers)), legible(title, keep="\n")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        share,
        aspect="auto",
        extent=(lower, upper, len(layers), 0),
        cmap="magma" if is_dark() else "magma_r",
        # The square root keeps a layer with widely spread gates visible next to one whose gates
        # are all in two bins.
        norm=PowerNorm(0.5, vmin=0),
        interpolation="nearest",
    )
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
    axes.set_yticks(np.arange(1, len(layers)), minor=True)
    axes.grid(visible=False)  # some styles draw one
    gap = matplotlib.rcParams["axes.facecolor"]
    axes.grid(visible=True, which="minor", axis="y", color=gap, linewidth=1.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("gate value (0: channel suppressed, 1: channel unchanged)", fontsize=9)
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the layer's gates", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


@plain_text
def draw_epochs(
    layers: Sequence[str], epochs: Sequence[float], means: np.ndarray, title: str
) -> Figure:
    """Draw depth against epochs, one row per layer, colored by the layer's mean gate.

    Args:
        layers: Names of the L layers, first to last.
        epochs: Epochs trained before each of the E validations; may be fractions.
        means: Mean gates, (E, L). NaN is left blank.
        title: Title of the figure.
    """
    layers, title = list(map(legible, layers)), legible(title, keep="\n")
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
