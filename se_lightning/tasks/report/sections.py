"""Sections of the report on a network's gates: figures, health and cost."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from se_lightning.excitation import (
    ExcitationSummary,
    draw_curves,
    draw_histogram,
    draw_selectivity,
    draw_spread,
)
from se_lightning.excitation.cost import ExcitationCost
from se_lightning.excitation.doctor import GateReport
from se_lightning.tasks.report.page import Section, table_html

__all__ = ["Drawing", "cost", "figures", "health"]


class Drawing(NamedTuple):
    """A figure to be drawn twice, in light and dark mode."""

    name: str
    title: str
    text: str
    draw: Callable[[], Figure]


def figures(summary: ExcitationSummary, chosen: Mapping[int, str]) -> list[Drawing]:
    """Return the figures.

    Args:
        summary: Statistics of a split.
        chosen: Names of the classes to draw, by label.
    """
    images, classes = int(summary.samples.sum(axis=0).max()), len(summary.classes)
    of = f"{images:,} images of {classes} classes"
    return [
        _histogram(summary, f"Gate values, {of}"),
        Drawing(
            "curves",
            "Mean gates of classes (the paper's Figure 6)",
            "Each panel is a layer; each point on a curve is the mean gate of one channel. Where "
            "the curves of the classes coincide, the gates do not depend on the class.",
            partial(draw_curves, summary, chosen),
        ),
        Drawing(
            "spread",
            "Spread within a class (the paper's Figure 7)",
            "The band is one standard deviation on either side of the mean of a class. Where the "
            "bands overlap, images of one class differ more than the classes do.",
            partial(draw_spread, summary, chosen),
        ),
        Drawing(
            "selectivity",
            "Selectivity by depth",
            "The share of the gate variance that is between classes: 0 if the gates do not depend "
            "on the class, 1 if they depend on the class alone. Gates that are independent of the "
            f"class would have about {(classes - 1) / images:.3f} on these images.",
            partial(draw_selectivity, summary.layers, summary.selectivity(), f"Selectivity, {of}"),
        ),
    ]


def _histogram(summary: ExcitationSummary, title: str) -> Drawing:
    bins = len(summary.edges) - 1
    counts, (lower, upper) = summary.histogram(), summary.edges[[0, -1]].tolist()
    text = (
        "Each row is a layer, the first on top; the color is the share of its gates with a value. "
        "The gates of a layer with one narrow spot hardly depend on image and channel."
    )
    lost = int(counts[:, bins:].sum())
    if lost:
        text += f" {lost:,} values are NaN or out of range and not shown."
    draw = partial(draw_histogram, summary.layers, counts[:, :bins], title, lower, upper)
    return Drawing("histogram", "Histograms by depth", text, draw)


def health(reports: Sequence[GateReport]) -> Section:
    """Return the table of the gates' condition."""
    header = ["layer", "mean", "constant", "from 1", "from 0", "dead units", "rank", "findings"]
    rows = []
    for report in reports:
        cells = ["-"] * 6  # for a gate that was never executed
        if report.samples:
            cells = [
                f"{report.mean:.3f}",
                f"{report.constant_share:.0%}",
                f"{report.from_one:.3f}",
                f"{report.from_zero:.3f}",
                f"{report.dead} of {report.hidden}" if report.hidden else "-",
                "-" if np.isnan(report.effective_rank) else f"{report.effective_rank:.1f}",
            ]
        findings = "; ".join(each.text for each in report.findings) or "-"
        rows.append([report.layer, *cells, findings])
    text = (
        "Problems of the gates, if any. Constant: share of channels with the same gate for every "
        "image. From 1 and from 0: largest distance of a channel; near 0, the gate is an identity "
        "or shut. Dead units: hidden units that are 0 for every image. Rank: effective number of "
        "directions in which the gate varies."
    )
    return Section("Health", text, table_html(header, rows, texts=(0, len(header) - 1)))


def cost(costs: Sequence[ExcitationCost]) -> Section:
    """Return the table of each block's cost, and the total."""
    header = ["layer", "C", "hidden", "parameters", "share", "multiply-adds", "rescaling", "share"]
    rows = [
        [
            each.layer,
            str(each.channels),
            str(each.hidden or "-"),
            f"{each.parameters:,}",
            f"{each.parameter_share:.2%}",
            f"{each.multiply_adds:,}",
            f"{each.rescaling:,}",
            f"{each.operation_share:.2%}",
        ]
        for each in costs
    ]
    parameters, adds, rescaling, of_parameters, of_operations = (
        sum(column) for column in list(zip(*costs, strict=True))[3:]
    )
    total = ["all", "", "", f"{parameters:,}", f"{of_parameters:.2%}"]
    total += [f"{adds:,}", f"{rescaling:,}", f"{of_operations:.2%}"]
    text = (
        "Cost of each gate for one image, and its share of the network's parameters and "
        "operations. Multiply-adds: in its layers. Rescaling: additions of the squeeze and "
        "multiplications with the input."
    )
    return Section("Cost", text, table_html(header, rows, total=total))
