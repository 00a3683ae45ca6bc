"""How much the network needs each of its gates."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor

from se_lightning.arguments import one_of
from se_lightning.data.base import ImageDataModule
from se_lightning.excitation.what_if import ALL_BLOCKS, REPLACEMENTS, Batches, WhatIfRow
from se_lightning.excitation.what_if import what_if as measure
from se_lightning.models import find_gates
from se_lightning.tasks.splits import SPLITS, device_of, split_batches

__all__ = ["draw_what_if", "what_if"]

log = logging.getLogger(__name__)

# Batches that are kept rather than read again.
KEPT_BYTES = 1_000_000_000


def what_if(
    model: LightningModule,
    datamodule: LightningDataModule,
    *,
    folder: str,
    split: str = "test",
    replacements: Sequence[str] = tuple(REPLACEMENTS),
    images: int | None = None,
) -> dict[str, float]:
    """Measure what accuracy is left when gates put out something else, without retraining.

    Each block alone, each stage, and all at once: gates of 1, their channel's mean over the split,
    its mean over the images of the same class (which tells the network the class), or those of
    another image. Writes ``what_if.csv``, ``what_if.md`` and ``what_if.png``.

    Args:
        model: in eval mode, on its device.
        datamodule: set up.
        folder: where to.
        split: ``"train"``, ``"val"`` or ``"test"``.
        replacements: of ``one``, ``data_mean``, ``class_mean`` and ``shuffle``.
        images: evaluate this many, spread over the split; None is all.

    Returns:
        ``what_if/baseline``, an accuracy, and by replacement and block the drop from it:
        ``what_if/one/layer1.0.se``; fractions.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    one_of("split", split, SPLITS)
    if images is not None and images < 1:
        raise ValueError(f"`images` (={images}) must be at least 1, or null for all.")
    if not find_gates(model):
        raise ValueError("task=what_if needs a network with gates, and this one has none.")
    batches = _batches(datamodule, split, images, device_of(model))
    classes = _count_classes(model, datamodule)
    rows = measure(model, batches, classes, replacements, device=device_of(model))
    out = Path(folder)
    names = _short([row.block for row in rows])
    _save(rows, out)
    (out / "what_if.md").write_text(_table(rows, names, split))
    draw_what_if(rows, names, split).savefig(out / "what_if.png", dpi=120)
    log.info("%s", _words(rows, names, split))
    log.info("what if        %s", out / "what_if.png")
    drops = {f"what_if/{row.replacement}/{row.block}": row.drop for row in rows[1:]}
    return {"what_if/baseline": rows[0].acc1, **drops}


def _count_classes(model: LightningModule, datamodule: LightningDataModule) -> int:
    count = getattr(datamodule, "num_classes", None) or getattr(model, "num_classes", None)
    if count is None:
        raise ValueError("Neither the data nor the model says its `num_classes`.")
    return int(count)


def _batches(
    datamodule: LightningDataModule, split: str, images: int | None, device: torch.device
) -> Batches:
    """Return the batches, to be had again and again; from memory where they are small."""

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        start, chosen = 0, _spread(datamodule, split, images)
        for pixels, labels in split_batches(datamodule, split, device):
            if chosen is None:
                yield pixels, labels
                continue
            here = chosen[(chosen >= start) & (chosen < start + len(labels))] - start
            start += len(labels)
            if len(here):
                yield pixels[here.to(pixels.device)], labels[here.to(labels.device)]
            if start > chosen[-1]:
                return

    kept: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pixels, labels in read():
        size += pixels.nbytes
        if size > KEPT_BYTES:
            log.warning(
                "The images are too many to be kept: shuffled gates come from the same batch of "
                "the split's own order, which may be that of the classes."
            )
            return read
        kept.append((pixels.cpu(), labels.cpu()))
    if not kept:
        raise ValueError(f"`split` (={split}) has no images.")
    # In a random order: a batch of one class would hide what gates know of classes.
    pixels, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    length = len(kept[0][1])
    kept.clear()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(length)
    return lambda: ((pixels[each], labels[each]) for each in order)


def _spread(datamodule: LightningDataModule, split: str, images: int | None) -> Tensor | None:
    """Return which images of a split are taken, since its order may be that of the classes."""
    if images is None:
        return None
    if not isinstance(datamodule, ImageDataModule):
        return torch.arange(images)
    total = len(datamodule.labels(split))
    return torch.arange(min(images, total)) * total // min(images, total)


def _short(blocks: Sequence[str]) -> dict[str, str]:
    """Return what the blocks are called in tables: paths without what all share at both ends."""
    return {
        block: block.removeprefix("backbone.").replace(".se.", ".").removesuffix(".se") or block
        for block in blocks
    }


def _save(rows: Sequence[WhatIfRow], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "what_if.csv").open("w", newline="") as file:
        table = csv.writer(file)
        names = [field.name for field in fields(WhatIfRow)]
        table.writerow(names)
        table.writerows([getattr(row, name) for name in names] for row in rows)


def _kinds(rows: Sequence[WhatIfRow]) -> list[str]:
    return list(dict.fromkeys(row.replacement for row in rows[1:]))


def _drops(rows: Sequence[WhatIfRow]) -> dict[str, list[float]]:
    """Return, by block, the drop of each replacement, in percentage points."""
    blocks: dict[str, list[float]] = {}
    for row in rows[1:]:
        blocks.setdefault(row.block, []).append(100 * row.drop)
    return blocks


def _table(rows: Sequence[WhatIfRow], names: dict[str, str], split: str) -> str:
    kinds = _kinds(rows)
    lines = [
        f"Accuracy on {rows[0].samples} images of {split}: {100 * rows[0].acc1:.2f} %. "
        "Drop in percentage points when the gates of a block, of a stage, or of all are replaced; "
        f"one image is {100 / rows[0].samples:.2g} points:",
        "",
        "| block | " + " | ".join(kinds) + " |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for block, drops in _drops(rows).items():
        lines.append(f"| {names[block]} | " + " | ".join(f"{d:.2f}" for d in drops) + " |")
    lines += ["", *(f"- {kind}: gates replaced by {REPLACEMENTS[kind]}" for kind in kinds), ""]
    return "\n".join(lines)


def _words(rows: Sequence[WhatIfRow], names: dict[str, str], split: str) -> str:
    """Say for each replacement what all blocks lose, and the block that loses most."""
    first = f"{100 * rows[0].acc1:.2f} % of {rows[0].samples} images of {split}; drop with gates of"
    lines = [first]
    for kind in _kinds(rows):
        *parts, everywhere = [row for row in rows[1:] if row.replacement == kind]
        worst = max((row for row in parts if row.gates == 1), key=lambda row: row.drop)
        text = f"{kind:14} {100 * everywhere.drop:6.2f} points in all blocks; in one at most "
        text += f"{100 * worst.drop:.2f}, {names[worst.block]}"
        if several := [row for row in parts if row.gates > 1]:
            text += f"; in the last stage {100 * several[-1].drop:.2f}"
        lines.append(text)
    return "\n".join(lines)


def draw_what_if(rows: Sequence[WhatIfRow], names: dict[str, str], split: str) -> Figure:
    """Draw the drops: a group of bars a block, a bar a replacement."""
    drops, kinds = _drops(rows), _kinds(rows)
    several = {row.block for row in rows[1:] if row.gates > 1} | {ALL_BLOCKS}
    single = {block: each for block, each in drops.items() if block not in several}
    together = {block: each for block, each in drops.items() if block in several}
    # Blocks side by side while their names have room; several at once have a scale of their own.
    widths = [1.5 + 0.13 * len(part) * len(kinds) for part in (single, together)]
    widths[0] = min(widths[0], 14.0)
    figure = Figure(figsize=(max(sum(widths), 7.5), 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=widths)
    _bars(left, single, names, kinds)
    _bars(right, together, names, kinds)
    left.set_xlabel("block whose gates are replaced, in order of depth")
    left.set_ylabel("drop of accuracy, percentage points")
    left.legend(title="gates replaced by", fontsize=8, title_fontsize=8)
    right.set_xlabel("several at once")
    figure.suptitle(
        f"What it costs to replace gates: as trained, {100 * rows[0].acc1:.2f} % of "
        f"{rows[0].samples} images of {split} are right",
        fontsize=11,
    )
    return figure


def _bars(
    axes: Axes, drops: dict[str, list[float]], names: dict[str, str], kinds: Sequence[str]
) -> None:
    colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    values, bar = np.array(list(drops.values())), 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        places = np.arange(len(drops)) + (index - (len(kinds) - 1) / 2) * bar
        axes.bar(places, values[:, index], bar, color=colors[index % len(colors)], label=kind)
    step = -(-len(drops) // 60)
    size = 8 if len(drops) <= 25 else 6
    shown = [names[block] for block in drops][::step]
    axes.set_xticks(range(0, len(drops), step), shown, rotation=90, fontsize=size)
    axes.set_xlim(-0.6, len(drops) - 0.4)
    axes.axhline(0, color=matplotlib.rcParams["axes.edgecolor"], linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
