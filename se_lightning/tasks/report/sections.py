"""The parts of the report on a network's gates: what is drawn or listed, and how to read it."""

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
    """A figure not drawn yet, since it is drawn for light and for dark."""

    name: str
    title: str
    text: str
    draw: Callable[[], Figure]


def figures(summary: ExcitationSummary, chosen: Mapping[int, str]) -> list[Drawing]:
    """Return the figures.

    Args:
        summary: of a split.
        chosen: names of the classes drawn, by label.
    """
    images, classes = int(summary.samples.sum(axis=0).max()), len(summary.classes)
    of = f"{images:,} images of {classes} classes"
    return [
        _histogram(summary, f"Gate values, {of}"),
        Drawing(
            "curves",
            "Mean gates of classes (the paper's Figure 6)",
            "Each panel is a layer, a point on a curve the mean gate of one channel. Where the "
            "classes' curves lie on each other, the layer does not tell them apart.",
            partial(draw_curves, summary, chosen),
        ),
        Drawing(
            "spread",
            "Spread within a class (the paper's Figure 7)",
            "The band is one standard deviation to either side of the class's mean. Where bands "
            "are wider than their distance, images of a class differ more than the classes do.",
            partial(draw_spread, summary, chosen),
        ),
        Drawing(
            "selectivity",
            "Selectivity by depth",
            "The share of the gates' variance that lies between classes: 0, they do not tell "
            "classes apart; 1, they depend on the class alone. Gates that know nothing of the "
            f"classes would have about {(classes - 1) / images:.3f} on these images.",
            partial(draw_selectivity, summary.layers, summary.selectivity(), f"Selectivity, {of}"),
        ),
    ]


def _histogram(summary: ExcitationSummary, title: str) -> Drawing:
    bins = len(summary.edges) - 1
    counts, (lower, upper) = summary.histogram(), summary.edges[[0, -1]].tolist()
    text = (
        "A row is a layer, the first on top; the colour says how many of its gates have the value "
        "below. A row that is one narrow spot depends little on image and channel."
    )
    lost = int(counts[:, bins:].sum())
    if lost:
        text += f" {lost:,} values are NaN or lie outside, and are not drawn."
    draw = partial(draw_histogram, summary.layers, counts[:, :bins], title, lower, upper)
    return Drawing("histogram", "Histograms by depth", text, draw)


def health(reports: Sequence[GateReport]) -> Section:
    """Return the doctor's table."""
    header = ["layer", "mean", "constant", "from 1", "from 0", "dead units", "rank", "findings"]
    rows = []
    for report in reports:
        cells = ["-"] * 6  # of a gate that is never called
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
        "What ails a gate, if anything. Constant: the channels that are the same for every image. "
        "From 1 and from 0: how far the farthest channel is; near 0, the gate is an identity, or "
        "shut. Dead units: hidden ones that are 0 for every image. Rank: in how many directions "
        "the gate moves."
    )
    return Section("Health", text, table_html(header, rows, texts=(0, len(header) - 1)))


def cost(costs: Sequence[ExcitationCost]) -> Section:
    """Return what each block costs, and all together."""
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
        "What each gate takes for one image, and its share in the whole network's parameters and "
        "operations. Multiply-adds are those of its layers; rescaling, the additions of its "
        "squeeze and the products with its input."
    )
    return Section("Cost", text, table_html(header, rows, total=total))
