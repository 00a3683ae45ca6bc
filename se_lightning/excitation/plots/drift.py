"""Plot of the distance between the gates of two networks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.drift import Drift
from se_lightning.excitation.plots.names import legible, plain_text

__all__ = ["draw_drift"]


@plain_text
def draw_drift(drifts: Sequence[Drift], title: str) -> Figure:
    """Draw both cosines, and below them the divergence of the histograms, by depth.

    Args:
        drifts: One entry per layer, first to last.
        title: Title of the figure.
    """
    # More names would overlap.
    shown = evenly(len(drifts), 16)
    names, title = [legible(drifts[k].layer) for k in shown], legible(title, keep="\n")
    depth = np.arange(len(drifts))
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(depth, [each.cosine for each in drifts], "o-", ms=4, label="of the mean gates")
    above.plot(
        depth, [each.image_cosine for each in drifts], "s--", ms=3, label="per image, averaged"
    )
    above.set_ylabel("cosine\n(1: identical)", fontsize=9)
    above.legend(fontsize=8, frameon=False)
    below.bar(depth, [each.js for each in drifts], color="C2")
    below.set_ylabel("Jensen-Shannon\n(0: identical)", fontsize=9)
    below.set_xticks(shown, names, rotation=45, ha="right", fontsize=8)
    for axes in (above, below):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.margins(y=0.15)
        axes.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
