"""Comparison of the gates of two trained networks, layer by layer."""

import logging
from collections.abc import Sequence
from itertools import tee
from pathlib import Path

import numpy as np
import torch

from se_lightning.atomic import write_text
from se_lightning.excitation import ExcitationStatistics, Taps
from se_lightning.excitation.doctor import aligned
from se_lightning.excitation.drift import Drift, ImageCosine, check_comparable, drift_of
from se_lightning.excitation.plots.drift import draw_drift
from se_lightning.excitation.recording import record
from se_lightning.excitation.taps import require_gates
from se_lightning.lightning import LightningDataModule
from se_lightning.models.layers.head import predicted
from se_lightning.modules import ImageClassifier
from se_lightning.tables import csv_table
from se_lightning.tasks.splits import device_of, split_batches

__all__ = ["compare"]

log = logging.getLogger(__name__)

SHOWN = 10  # maximum number of layers in the log


def compare(
    models: Sequence[ImageClassifier],
    datamodule: LightningDataModule,
    *,
    folder: str,
    split: str = "val",
    names: Sequence[str],
) -> dict[str, float]:
    """Compare two networks' gates on the same images.

    Writes ``compare.csv``, ``compare.md`` and ``compare.png``; see
    :class:`se_lightning.excitation.drift.Drift` for the columns.

    Args:
        models: Two models with the same gates, on their device.
        datamodule: Datamodule that has been set up.
        folder: Output folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        names: Names of the two models.

    Returns:
        ``compare/images``, and ``compare/cosine/<layer>`` and ``compare/js/<layer>``.

    Raises:
        ValueError: If there are not two models, or they have no gates or different ones.
    """
    if len(models) != 2:
        raise ValueError(
            f"task=compare needs two checkpoints, got {len(models)}: ckpt_path=[A.ckpt,B.ckpt]."
        )
    drifts, correct, images = _measure(models, datamodule, split, names)
    if _equal(models):
        log.warning(
            "%s and %s hold equal weights. best.ckpt equals last.ckpt if the last epoch was the "
            "best; checkpoint.top_k=K keeps several epochs.",
            *names,
        )
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.csv", csv_table(Drift._fields, drifts))
    accuracies = [
        f"{name} (accuracy {100 * hits / images:.2f} %)"
        for name, hits in zip(names, correct, strict=True)
    ]
    heading = f"the gates of two networks on {images} images ({split})"
    write_text(out / "compare.md", _markdown(drifts, heading, accuracies))
    draw_drift(drifts, f"Similarity of {heading}").savefig(out / "compare.png", dpi=120)
    _log_table(drifts)
    log.info("table          %s", out / "compare.md")
    return {"compare/images": float(images)} | {
        f"compare/{kind}/{drift.layer}": getattr(drift, kind)
        for kind in ("cosine", "js")
        for drift in drifts
        if np.isfinite(getattr(drift, kind))
    }


def _equal(models: Sequence[ImageClassifier]) -> bool:
    first, second = (model.state_dict() for model in models)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def _measure(
    models: Sequence[ImageClassifier],
    datamodule: LightningDataModule,
    split: str,
    names: Sequence[str],
) -> tuple[list[Drift], list[int], int]:
    """Return the drift of each layer, the correct images of each model, and the image count."""
    device = device_of(models[0])
    require_gates(models[0].backbone)
    with Taps(models[0]) as first, Taps(models[1]) as second:
        taps = (first, second)
        check_comparable(first, second, names)
        lows, highs = zip(*(each.ends for each in taps), strict=True)
        counted = [
            ExcitationStatistics(
                first.layers, first.channels, lower=min(lows), upper=max(highs)
            ).on(device)
            for _ in taps
        ]
        per_image = ImageCosine(first.channels, counted[0].totals.device)
        correct, images = [0, 0], 0
        # Both models run on a batch before the next one is read.
        batches = tee(split_batches(datamodule, split, device))
        streams = [record(*each) for each in zip(models, batches, taps, strict=True)]
        for pair in zip(*streams, strict=True):
            size = len(pair[0].labels)
            per_image.update(pair[0].gates, pair[1].gates, size)
            for index, batch in enumerate(pair):
                counted[index].update(batch.gates)
                correct[index] += int((predicted(batch.logits) == batch.labels).sum())
            images += size
    summaries = [each.summary() for each in counted]
    return drift_of(summaries[0], summaries[1], per_image.compute()), correct, images


def _cells(drift: Drift) -> list[str]:
    numbers = (drift.cosine, drift.image_cosine, drift.js)
    return [drift.layer, str(drift.channels), *(f"{number:.4f}" for number in numbers)]


_HEADER = ["layer", "channels", "cosine", "cosine per image", "Jensen-Shannon"]


def _markdown(drifts: Sequence[Drift], heading: str, networks: Sequence[str]) -> str:
    rows = [_HEADER, ["---", *["---:"] * 4], *map(_cells, drifts)]
    lines = [
        f"# Similarity of {heading}",
        "",
        *(f"{number}. {name}" for number, name in enumerate(networks, 1)),
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Cosine: between the two mean gates; 1 means equal up to a factor. Cosine per image: the",
        "cosine between the gates of one image, averaged over images. Both compare channel with",
        "channel, which is hardly meaningful for networks with different initial weights.",
        "Jensen-Shannon: divergence of the two histograms, base 2; 0 means equal, 1 disjoint.",
    ]
    return "\n".join(lines) + "\n"


def _log_table(drifts: Sequence[Drift]) -> None:
    """Log the layers whose histograms differ most, in order of depth."""
    order = np.argsort([-np.nan_to_num(drift.js) for drift in drifts], kind="stable")[:SHOWN]
    rows = [_HEADER, *(_cells(drifts[index]) for index in sorted(order))]
    for line in aligned(rows):
        log.info("%s", line)
    if len(drifts) > SHOWN:
        log.info("(the %d of %d layers whose histograms differ most)", SHOWN, len(drifts))
