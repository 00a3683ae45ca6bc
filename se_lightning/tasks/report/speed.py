"""The table and the picture of a benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

__all__ = ["Speed", "draw_speed", "speed_table"]


@dataclass(frozen=True)
class Speed:
    """Speed of one network in one kind of step.

    Args:
        network: Name of the network.
        mode: ``"eager"`` or ``"compiled"``.
        step: ``"train"``, ``"inference"``, or ``"latency"`` for inference with one image.
        images_per_s: Images per second, from the median.
        p50_s: Median of the seconds per step.
        p95_s: Seconds that 95 % of the steps do not exceed.
        p99_s: Seconds that 99 % of the steps do not exceed.
        over_plain: Median over the rounds of the time as a multiple of that of the twin without
            gates; None without a twin.
        quartiles: First and third quartile of that multiple.
        over_this: Median of the time as a multiple of the benchmarked network's.
        memory_mb: Memory of a training step beyond the network, in 10^6 bytes: its peak on a GPU,
            and what the forward pass saves for the backward pass on a CPU. None for other steps.
        parameters: Number of parameters.
    """

    network: str
    mode: str
    step: str
    images_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    over_plain: float | None
    quartiles: tuple[float, ...] | None
    over_this: float
    memory_mb: float | None
    parameters: int


def speed_table(rows: Sequence[Speed], title: str) -> str:
    """Return the rows as Markdown, with times in milliseconds.

    Args:
        rows: Results of :func:`se_lightning.tasks.benchmark`.
        title: What was measured, and on which machine.
    """
    head = ("step", "mode", "network", "images/s", "p50, ms", "p95, ms", "p99, ms", "time / plain")
    lines: list[tuple[str, ...]] = [(*head, "memory, MB", "parameters")]
    for row in rows:
        ratio = "" if row.over_plain is None else f"{row.over_plain:.3f}"
        if row.quartiles not in (None, (1.0, 1.0)):
            ratio += " ({:.3f} to {:.3f})".format(*row.quartiles)
        times = (f"{1000 * value:.4g}" for value in (row.p50_s, row.p95_s, row.p99_s))
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.1f}"
        lines.append(
            (row.step, row.mode, row.network, f"{row.images_per_s:.4g}", *times, ratio, memory,
             f"{row.parameters:,}")
        )  # fmt: skip
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "| --- | --- | --- |" + " ---: |" * (len(lines[0]) - 3))
    return "\n".join([title, "", *text]) + "\n"


def draw_speed(rows: Sequence[Speed], title: str) -> Figure:
    """Draw images per second against parameters, one field for each step and mode.

    Args:
        rows: Results of :func:`se_lightning.tasks.benchmark`.
        title: Title of the figure.
    """
    kinds = list(dict.fromkeys((row.step, row.mode) for row in rows))
    figure = Figure(figsize=(max(6.0, 3.2 * len(kinds)), 4.0), layout="constrained")
    fields = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, (step, mode) in zip(fields, kinds, strict=True):
        shown = [row for row in rows if (row.step, row.mode) == (step, mode)]
        for row in shown:
            axes.scatter(row.parameters / 1e6, row.images_per_s, label=row.network)
        axes.set_title(f"{step}, {mode}")
        axes.set_xlabel("parameters (millions)")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.3)
        axes.grid(alpha=0.3)
    fields[0].set_ylabel("images per second")
    fields[0].legend()
    figure.suptitle(title, fontsize=11)
    return figure
