"""How much the network needs each of its gates."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor

from se_lightning.arguments import one_of
from se_lightning.data.base import ImageDataModule
from se_lightning.excitation.plots.what_if import draw_what_if
from se_lightning.excitation.taps import require_gates
from se_lightning.excitation.what_if import REPLACEMENTS, Batches, WhatIfRow, drops_by_block
from se_lightning.excitation.what_if import what_if as measure
from se_lightning.tasks.splits import SPLITS, device_of, split_batches

__all__ = ["what_if"]

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
    require_gates(model)
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


def _table(rows: Sequence[WhatIfRow], names: dict[str, str], split: str) -> str:
    blocks = drops_by_block(rows)
    kinds = list(next(iter(blocks.values())))
    lines = [
        f"Accuracy on {rows[0].samples} images of {split}: {100 * rows[0].acc1:.2f} %. "
        "Drop in percentage points when the gates of a block, of a stage, or of all are replaced; "
        f"one image is {100 / rows[0].samples:.2g} points:",
        "",
        "| block | " + " | ".join(kinds) + " |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for block, drops in blocks.items():
        cells = " | ".join(f"{drop:.2f}" for drop in drops.values())
        lines.append(f"| {names[block]} | {cells} |")
    lines += ["", *(f"- {kind}: gates replaced by {REPLACEMENTS[kind]}" for kind in kinds), ""]
    return "\n".join(lines)


def _words(rows: Sequence[WhatIfRow], names: dict[str, str], split: str) -> str:
    """Say for each replacement what all blocks lose, and the block that loses most."""
    first = f"{100 * rows[0].acc1:.2f} % of {rows[0].samples} images of {split}; drop with gates of"
    lines = [first]
    for kind in dict.fromkeys(row.replacement for row in rows[1:]):
        *parts, everywhere = [row for row in rows[1:] if row.replacement == kind]
        worst = max((row for row in parts if row.gates == 1), key=lambda row: row.drop)
        text = f"{kind:14} {100 * everywhere.drop:6.2f} points in all blocks; in one at most "
        text += f"{100 * worst.drop:.2f}, {names[worst.block]}"
        if several := [row for row in parts if row.gates > 1]:
            text += f"; in the last stage {100 * several[-1].drop:.2f}"
        lines.append(text)
    return "\n".join(lines)
