"""Importance of each gate for the accuracy."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from se_lightning.arguments import one_of
from se_lightning.atomic import write_text
from se_lightning.data.base import ImageDataModule
from se_lightning.excitation.plots.what_if import draw_what_if
from se_lightning.excitation.taps import require_gates
from se_lightning.excitation.what_if import REPLACEMENTS, Batches, WhatIfRow, drops_by_block
from se_lightning.excitation.what_if import what_if as measure
from se_lightning.lightning import LightningDataModule, LightningModule
from se_lightning.models.layers.head import count_classes
from se_lightning.tables import csv_table
from se_lightning.tasks.splits import SPLITS, device_of, split_batches

__all__ = ["what_if"]

log = logging.getLogger(__name__)

KEPT_BYTES = 1_000_000_000  # images of up to this size are kept in memory


def what_if(
    model: LightningModule,
    datamodule: LightningDataModule,
    *,
    folder: str,
    split: str = "test",
    replacements: Sequence[str] = tuple(REPLACEMENTS),
    images: int | None = None,
) -> dict[str, float]:
    """Measure the accuracy that remains when gates are replaced, without retraining.

    The gates of each block, of each stage and of all blocks at once are replaced by 1, by the mean
    of their channel over the split, by its mean over the images of the same class (which reveals
    the class to the network), or by the gates of another image. Writes ``what_if.csv``,
    ``what_if.md`` and ``what_if.png``.

    Args:
        model: Model in eval mode, on its device.
        datamodule: Datamodule that has been set up.
        folder: Output folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        replacements: Any of ``one``, ``data_mean``, ``class_mean`` and ``shuffle``.
        images: Number of images, evenly spaced over the split. None uses all.

    Returns:
        ``what_if/baseline``, the accuracy, and the drop from it by replacement and block, as in
        ``what_if/one/backbone.layer1.0.se``; all are fractions.

    Raises:
        ValueError: If the split, a replacement, the gates or `num_classes` do not exist, or
            `images` is below 1.
    """
    one_of("split", split, SPLITS)
    if images is not None and images < 1:
        raise ValueError(f"`images` (={images}) must be at least 1, or null for all.")
    require_gates(model)
    batches = _batches(datamodule, split, images, device_of(model))
    classes = _count_classes(model, datamodule)
    rows = measure(model, batches, classes, replacements, device=device_of(model))
    out = Path(folder)
    _save(rows, out)
    write_text(out / "what_if.md", _table(rows, split))
    draw_what_if(rows, split).savefig(out / "what_if.png", dpi=120)
    log.info("%s", _words(rows, split))
    log.info("what if        %s", out / "what_if.png")
    drops = {f"what_if/{row.replacement}/{row.block}": row.drop for row in rows[1:]}
    return {"what_if/baseline": rows[0].acc1, **drops}


def _count_classes(model: LightningModule, datamodule: LightningDataModule) -> int:
    count = getattr(datamodule, "num_classes", None)
    count = count or count_classes(getattr(model, "num_classes", None))
    if count is None:
        raise ValueError("`num_classes` is defined neither by the data nor by the model.")
    return int(count)


def _batches(
    datamodule: LightningDataModule, split: str, images: int | None, device: torch.device
) -> Batches:
    """Return a function that yields the batches repeatedly, from memory if they are small."""

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
                "The images do not fit in memory. Gates are shuffled within batches in the order "
                "of the split, which may be sorted by class."
            )
            return read
        kept.append((pixels.cpu(), labels.cpu()))
    if not kept:
        raise ValueError(f"`split` (={split}) has no images.")
    # In random order: shuffling within a batch of one class would keep the class information.
    pixels, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    length = len(kept[0][1])
    kept.clear()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(length)
    return lambda: ((pixels[each], labels[each]) for each in order)


def _spread(datamodule: LightningDataModule, split: str, images: int | None) -> Tensor | None:
    """Return the indices of the chosen images; the order of a split may be that of its classes."""
    if images is None:
        return None
    if not isinstance(datamodule, ImageDataModule):
        return torch.arange(images)
    total = len(datamodule.labels(split))
    return torch.arange(min(images, total)) * total // min(images, total)


def _save(rows: Sequence[WhatIfRow], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(WhatIfRow)]
    table = csv_table(names, ([getattr(row, name) for name in names] for row in rows))
    write_text(folder / "what_if.csv", table)


def _table(rows: Sequence[WhatIfRow], split: str) -> str:
    blocks = drops_by_block(rows)
    kinds = list(next(iter(blocks.values())))
    lines = [
        f"Accuracy on {rows[0].samples} images of {split}: {100 * rows[0].acc1:.2f} %. Drop in "
        "percentage points when the gates of a block, of a stage, or of all blocks are replaced "
        f"(one image is {100 / rows[0].samples:.2g} points):",
        "",
        "| block | " + " | ".join(kinds) + " |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for block, drops in blocks.items():
        cells = " | ".join(f"{drop:.2f}" for drop in drops.values())
        lines.append(f"| {block} | {cells} |")
    lines += ["", *(f"- {kind}: gates replaced by {REPLACEMENTS[kind]}" for kind in kinds), ""]
    return "\n".join(lines)


def _words(rows: Sequence[WhatIfRow], split: str) -> str:
    """Return one line per replacement: the drop for all blocks, and for the worst single block."""
    first = f"Accuracy {100 * rows[0].acc1:.2f} % on {rows[0].samples} images of {split}. Drops:"
    lines = [first]
    for kind in dict.fromkeys(row.replacement for row in rows[1:]):
        *parts, everywhere = [row for row in rows[1:] if row.replacement == kind]
        worst = max((row for row in parts if row.gates == 1), key=lambda row: row.drop)
        text = f"{kind:14} {100 * everywhere.drop:6.2f} points in all blocks; at most "
        text += f"{100 * worst.drop:.2f} in one ({worst.block})"
        if several := [row for row in parts if row.gates > 1]:
            text += f"; in the last stage {100 * several[-1].drop:.2f}"
        lines.append(text)
    return "\n".join(lines)
