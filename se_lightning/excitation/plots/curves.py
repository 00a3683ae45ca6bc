"""Plots of the mean gates per channel: the paper's Figures 6 and 7."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.curves import find_layers
from se_lightning.excitation.plots.names import legible, plain_text
from se_lightning.excitation.summary import ExcitationSummary

__all__ = ["draw_curves", "draw_spread"]


@plain_text
def draw_curves(
    summary: ExcitationSummary,
    names: Mapping[int, str],
    *,
    layers: Sequence[str | int] | None = None,
    channels: int = 50,
    title: str = "Mean gate of each class and of all samples",
) -> Figure:
    """Draw the paper's Figure 6: one panel per layer, one curve per class, and one for all samples.

    Args:
        summary: Statistics that include the given classes.
        names: Class names by label. Classes without samples are listed in the title instead.
        layers: Layers to draw; see :func:`find_layers`.
        channels: Maximum number of channels per layer, evenly spaced.
        title: Title of the figure.
    """
    seen, heading = _seen(summary, names, title)
    figure, panels = _panels(summary, layers, channels, heading)
    curves = [(name, summary.mean(label)) for label, name in seen.items()]
    common = summary.mean()
    for axes, at, columns, marker in panels:
        # Below the class curves, which it would hide in early layers.
        (line,) = axes.plot(at, common[columns], marker=marker, lw=4, alpha=0.4, zorder=1.5)
        line.set(color=matplotlib.rcParams["text.color"], label="all samples")
        for (name, mean), color in zip(curves, _colors(len(curves)), strict=True):
            axes.plot(at, mean[columns], color=color, lw=1.2, marker=marker, label=name)
    _legend(figure, panels[0].axes)
    return figure


@plain_text
def draw_spread(
    summary: ExcitationSummary,
    names: Mapping[int, str],
    *,
    layers: Sequence[str | int] | None = None,
    channels: int = 50,
    classes: int = 2,
    title: str = "Mean gate within a class, and its standard deviation",
) -> Figure:
    """Draw the paper's Figure 7: the mean of each class in a band of one standard deviation.

    Args:
        summary: Statistics that include the given classes.
        names: Class names by label.
        layers: Layers to draw; see :func:`find_layers`.
        channels: Maximum number of channels per layer, evenly spaced.
        classes: Number of classes to draw: the first ones that have samples.
        title: Title of the figure.
    """
    seen, heading = _seen(summary, names, title)
    figure, panels = _panels(summary, layers, channels, heading)
    drawn = list(seen.items())[:classes]
    moments = [(name, summary.mean(label), summary.std(label)) for label, name in drawn]
    for axes, at, columns, marker in panels:
        for (name, mean, std), color in zip(moments, _colors(len(seen)), strict=False):
            middle, half = mean[columns], std[columns]
            axes.fill_between(
                at, middle - half, middle + half, color=color, alpha=0.25, linewidth=0
            )
            axes.plot(at, middle, color=color, lw=1.2, marker=marker, label=name)
    _legend(figure, panels[0].axes)
    return figure


def _seen(
    summary: ExcitationSummary, names: Mapping[int, str], title: str
) -> tuple[dict[int, str], str]:
    """Return the classes that have samples, and the title, which lists the others."""
    shown = {label: legible(name) for label, name in names.items()}
    seen = {label: name for label, name in shown.items() if summary.class_samples(label)}
    missing = [name for label, name in shown.items() if label not in seen]
    title = legible(title, keep="\n")
    if missing:
        title += f"\nno samples of {_listed(missing)}"
    return seen, title


def _listed(names: Sequence[str], most: int = 5) -> str:
    short = ", ".join(_short(name) for name in names[:most])
    return short if len(names) <= most else f"{short} and {len(names) - most} more"


def _short(name: str) -> str:
    return textwrap.shorten(name, 28, placeholder="...") or name[:28]


def _colors(count: int) -> Iterable[Any]:
    """Return the style's colors, or a rainbow if there are too few."""
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    if count <= len(cycle):
        return cycle[:count]
    return matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))


class _Panel(NamedTuple):
    """The axes of a layer, its channels, and their columns among the channels of all layers."""

    axes: Axes
    at: np.ndarray
    columns: np.ndarray
    marker: str | None


def _panels(
    summary: ExcitationSummary, layers: Sequence[str | int] | None, channels: int, heading: str
) -> tuple[Figure, list[_Panel]]:
    chosen = find_layers(summary.layers, layers)
    titles = {
        layer: legible(name) + (": never executed" if name in summary.unseen else "")
        for layer, name in enumerate(summary.layers)
    }
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    size = (max(3.4 * columns, 6), 2.3 * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.remove()
    panels = []
    for axes, layer in zip(grid.flat, chosen, strict=False):
        axes.set_title(titles[layer], fontsize=9)
        axes.set_ylim(summary.edges[0], summary.edges[-1])
        axes.grid(visible=True, alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        at = np.array(evenly(summary.channels[layer], channels))
        marker = "." if len(at) < 8 else None  # a line through one channel is invisible
        panels.append(_Panel(axes, at, summary.of(layer).start + at, marker))
    for panel in panels[-columns:]:
        panel.axes.set_xlabel("channel", fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean gate", fontsize=8)
    figure.suptitle(heading, fontsize=10)
    return figure, panels


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        short = [_short(label) for label in labels]
        columns = min(len(short), 5)
        figure.legend(handles, short, loc="outside lower center", ncols=columns, fontsize=8)
