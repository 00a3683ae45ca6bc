"""Plots of class selectivity, by depth and over epochs."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.plots.histogram import is_dark
from se_lightning.excitation.plots.names import legible, plain_text

__all__ = ["draw_selectivity", "draw_selectivity_epochs"]

_MEANING = "share of the gate variance that is between classes"


@plain_text
def draw_selectivity(layers: Sequence[str], values: np.ndarray, title: str) -> Figure:
    """Draw one bar per layer, the first layer on top.

    Args:
        layers: Names of the L layers, first to last.
        values: Selectivity of each layer, (L,), in [0, 1]. NaN draws no bar.
        title: Title of the figure.
    """
    layers, title = list(map(legible, layers)), legible(title, keep="\n")
    values = np.asarray(values, dtype=float)
    figure = Figure(figsize=(7.5, 1.3 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(layers))
    axes.set_axisbelow(True)
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.barh(places, np.nan_to_num(values), height=0.7)
    for place, value in zip(places, values, strict=True):
        text = f" {value:.3f}" if np.isfinite(value) else " n/a"
        # The number is next to a short bar and inside a long one.
        inside = value > 0.9
        color = matplotlib.rcParams["axes.facecolor" if inside else "text.color"]
        axes.text(
            np.nan_to_num(value),
            place,
            f"{text} ",
            va="center",
            ha="right" if inside else "left",
            fontsize=7,
            color=color,
        )
    axes.set_yticks(places, layers, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(_MEANING, fontsize=9)
    axes.set_title(title, fontsize=10)
    return figure


@plain_text
def draw_selectivity_epochs(
    layers: Sequence[str], epochs: Sequence[float], values: np.ndarray, title: str
) -> Figure:
    """Draw one curve per layer over the epochs, colored by depth.

    Args:
        layers: Names of the L layers, first to last.
        epochs: Epochs trained before each of the E validations; may be fractions.
        values: Selectivity, (E, L), in [0, 1]. NaN leaves a gap.
        title: Title of the figure.
    """
    layers, title = list(map(legible, layers)), legible(title, keep="\n")
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colors = _depths()
    last = max(len(layers) - 1, 1)
    marker = "." if len(epochs) <= 30 else None
    for layer, curve in enumerate(np.asarray(values, dtype=float).T):
        axes.plot(
            epochs, curve, color=colors(layer / last), lw=1.3, marker=marker, label=layers[layer]
        )
    axes.grid(visible=True, alpha=0.3)
    axes.set_ylim(0, 1)
    axes.tick_params(labelsize=8)
    if all(float(epoch).is_integer() for epoch in epochs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epochs trained", fontsize=9)
    axes.set_ylabel(_MEANING, fontsize=9)
    axes.set_title(title, fontsize=10)
    scale = ScalarMappable(Normalize(0, last), colors)
    named = evenly(len(layers), 10)
    bar = figure.colorbar(scale, ax=axes)
    bar.set_ticks(named, labels=[layers[layer] for layer in named], fontsize=8)
    bar.ax.invert_yaxis()  # first layer on top, as in the other figures
    return figure


def _depths() -> LinearSegmentedColormap:
    """Return a colormap whose colors all contrast with the background."""
    low, high = (0.3, 1.0) if is_dark() else (0.0, 0.85)
    part = matplotlib.colormaps["viridis"](np.linspace(low, high, 64))
    return LinearSegmentedColormap.from_list("depth", part)
