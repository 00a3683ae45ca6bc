"""Plot of the accuracy that is lost when gates are replaced."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from se_lightning.excitation.plots.names import legible, plain_text
from se_lightning.excitation.what_if import ALL_BLOCKS, WhatIfRow, drops_by_block

__all__ = ["draw_what_if"]


@plain_text
def draw_what_if(rows: Sequence[WhatIfRow], split: str) -> Figure:
    """Draw the drops in accuracy: one group of bars per block, one bar per replacement.

    Args:
        rows: Results of :func:`se_lightning.excitation.what_if`.
        split: Name of the split, for the title.
    """
    drops = drops_by_block(rows)
    several = {row.block for row in rows[1:] if row.gates > 1} | {ALL_BLOCKS}
    single = {legible(block): each for block, each in drops.items() if block not in several}
    together = {legible(block): each for block, each in drops.items() if block in several}
    # Single blocks and groups of blocks have separate axes: their drops differ in scale.
    replacements = len({row.replacement for row in rows[1:]})
    widths = [1.5 + 0.13 * len(part) * replacements for part in (single, together)]
    widths[0] = min(widths[0], 14.0)
    figure = Figure(figsize=(max(sum(widths), 7.5), 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=widths)
    _bars(left, single)
    _bars(right, together)
    left.set_xlabel("block whose gates are replaced, by depth")
    left.set_ylabel("drop in accuracy (percentage points)")
    left.legend(title="gates replaced by", fontsize=8, title_fontsize=8)
    right.set_xlabel("several blocks at once")
    figure.suptitle(
        f"Accuracy lost by replacing gates; as trained, {100 * rows[0].acc1:.2f} % on "
        f"{rows[0].samples} images of {split}",
        fontsize=11,
    )
    return figure


def _bars(axes: Axes, drops: Mapping[str, Mapping[str, float]]) -> None:
    colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    kinds = list(dict.fromkeys(kind for each in drops.values() for kind in each))
    bar = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        places = np.arange(len(drops)) + (index - (len(kinds) - 1) / 2) * bar
        values = [each[kind] for each in drops.values()]
        axes.bar(places, values, bar, color=colors[index % len(colors)], label=kind)
    step = -(-len(drops) // 60)
    size = 8 if len(drops) <= 25 else 6
    axes.set_xticks(
        range(0, len(drops), step),
        list(drops)[::step],
        rotation=90,
        fontsize=size,
    )
    axes.set_xlim(-0.6, len(drops) - 0.4)
    axes.axhline(0, color=matplotlib.rcParams["axes.edgecolor"], linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
