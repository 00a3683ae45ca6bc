"""Pictures of the training images, as the network sees them."""

import logging
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from se_lightning.atomic import write_text
from se_lightning.data.base import ImageDataModule
from se_lightning.excitation.plots.names import legible, plain_text
from se_lightning.lightning import LightningDataModule
from se_lightning.tables import csv_table

__all__ = ["look"]

log = logging.getLogger(__name__)


def look(
    datamodule: LightningDataModule, *, folder: str, images: int = 64, epoch: int = 0
) -> dict[str, float]:
    """Draw augmented training images with their labels, and count the images of each class.

    Writes ``look.png``, ``class_counts.png`` and ``class_counts.csv``.

    Args:
        datamodule: Datamodule of se_lightning.
        folder: Output folder.
        images: Number of images.
        epoch: Epoch of the augmentation.

    Returns:
        The number of images of each split, as ``train/images`` and so on.

    Raises:
        ValueError: If ``images`` is below 1, or the datamodule is not from se_lightning.
    """
    if not isinstance(datamodule, ImageDataModule):
        name = type(datamodule).__name__
        raise ValueError(f"task=look supports se_lightning datamodules only, got {name}.")
    if images < 1:
        raise ValueError(f"`images` (={images}) must be at least 1.")
    pixels, labels = _first_images(datamodule, images, epoch)
    names = datamodule.class_names
    counts = {
        split: np.bincount(datamodule.labels(split), minlength=len(names))
        for split in ("train", "val", "test")
    }
    out = Path(folder)
    _draw_sheet(pixels, labels, names, out / "look.png")
    _draw_counts(counts, names, out / "class_counts.png")
    rows = zip(names, *(each.tolist() for each in counts.values()), strict=True)
    write_text(out / "class_counts.csv", csv_table(["class", *counts], rows))
    for split, each in counts.items():
        log.info(
            "%-5s  %d images of %d classes, %d to %d each",
            split,
            each.sum(),
            len(names),
            each.min(),
            each.max(),
        )
    log.info("pictures       %s", out / "look.png")
    return {f"{split}/images": float(each.sum()) for split, each in counts.items()}


def _first_images(data: ImageDataModule, count: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the first images of an epoch, converted back to uint8, and their labels."""
    size = data.batch_size
    batches = islice(data.train_dataloader(epoch=epoch), math.ceil(count / size))
    pixels, labels = (torch.cat(parts)[:count] for parts in zip(*batches, strict=True))
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.mean, data.std))
    return (pixels * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8), labels


def _caption(label: Tensor, names: Sequence[str]) -> str:
    if not label.ndim:
        return names[int(label)]
    shares = label.sort(descending=True)
    parts = zip(shares.values.tolist(), shares.indices.tolist(), strict=True)
    return "\n".join(f"{share:.2f} {names[index]}" for share, index in parts if share > 0.005)


@plain_text
def _draw_sheet(pixels: Tensor, labels: Tensor, names: Sequence[str], path: Path) -> None:
    called = list(map(legible, names))
    captions = [_caption(label, called) for label in labels]
    columns = math.ceil(math.sqrt(1.5 * len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(1.3 * columns, 1.55 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, pixels, captions, strict=False):
        # 3 channels are drawn in color, else the first one in gray.
        shown = image.permute(1, 2, 0) if len(image) == 3 else image[0]
        axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(caption, fontsize=7)
    figure.savefig(path, dpi=120)


@plain_text
def _draw_counts(counts: dict[str, np.ndarray], names: Sequence[str], path: Path) -> None:
    shown = [legible(name) for name in names[:50]]
    figure = Figure(figsize=(8, 3 * len(counts)), layout="constrained")
    plots = figure.subplots(len(counts), 1, sharex=True)
    for axes, (split, each) in zip(plots, counts.items(), strict=True):
        axes.bar(range(len(names)), each, width=1 if len(names) > 50 else 0.8)
        axes.set_ylabel(f"images in {split}")
    if len(names) <= 50:
        plots[-1].set_xticks(range(len(names)), shown, rotation=45, ha="right")
    else:
        plots[-1].set_xlabel("class")
    figure.savefig(path, dpi=120)
