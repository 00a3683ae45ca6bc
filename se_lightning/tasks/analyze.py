"""Analysis of a trained network's gates: the paper's section 7.2 in one file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from se_lightning.atomic import write_text
from se_lightning.excitation import (
    ExcitationStatistics,
    ExcitationSummary,
    Taps,
    choose_classes,
)
from se_lightning.excitation.cost import ExcitationCost, excitation_cost
from se_lightning.excitation.curves import select_layers
from se_lightning.excitation.doctor import GateReport, diagnose
from se_lightning.excitation.recording import record
from se_lightning.excitation.taps import require_gates
from se_lightning.lightning import LightningDataModule
from se_lightning.models.layers.head import predicted
from se_lightning.modules import ImageClassifier
from se_lightning.tasks.report.page import Section, draw_both, page, picture_html
from se_lightning.tasks.report.sections import Drawing, cost, figures, health
from se_lightning.tasks.splits import class_names, device_of, split_batches

__all__ = ["analyze"]

log = logging.getLogger(__name__)

MOST_STATE = 1e9  # maximum size of the moments of all classes, in bytes


class _Found(NamedTuple):
    """Results of one pass over the split."""

    summary: ExcitationSummary
    costs: list[ExcitationCost]
    reports: list[GateReport]
    correct: int
    images: int


def analyze(
    model: ImageClassifier,
    datamodule: LightningDataModule,
    *,
    folder: str,
    split: str = "val",
    classes: Sequence[int | str] | int | None = None,
    layers: Sequence[str] | None = None,
    bins: int = 64,
) -> dict[str, float]:
    """Analyze the gates on a split; write the results to the folder ``analysis``.

    ``report.html`` is self-contained and works offline. Its figures are also saved as PNG, and
    its numbers as ``statistics.npz``: ``layers`` and ``channels`` (L,); ``edges`` (B + 1,) and
    ``counts`` (L, B + 2) of the histograms, the last two columns for NaN and values out of range;
    ``means`` and ``stds`` (C,) of the channels of all layers, one layer after another; ``classes``
    (K,) and ``class_means`` (K, C); ``selectivity`` (L,).

    Args:
        model: Model on its device.
        datamodule: Datamodule that has been set up.
        folder: Output folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        classes: Classes to draw: labels or names, or a number of evenly spaced classes. None
            selects goldfish, pug, plane and cliff of ImageNet, else the first four.
        layers: Paths of SE modules. None selects all.
        bins: Number of bins of the histograms.

    Returns:
        ``analyze/acc1``, ``analyze/images``, and ``analyze/selectivity/<layer>``.

    Raises:
        ValueError: If the model has no gates, or a class, layer or split does not exist.
    """
    names = class_names(datamodule, model.num_classes)
    chosen = choose_classes(classes, len(names), names)
    found = _measure(model, datamodule, split, layers, list(chosen), bins)
    out = Path(folder) / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    facts = _facts(model, datamodule, split, found)
    sections = [_picture(figure, out) for figure in figures(found.summary, chosen)]
    sections += [health(found.reports), cost(found.costs)]
    title = f"Gates of {type(model.backbone).__name__}"
    write_text(out / "report.html", page(title, facts, sections))
    _save_arrays(found.summary, out / "statistics.npz")
    for report in found.reports:
        for finding in report.findings:
            if finding.grave:
                log.warning("%s: %s.", report.layer, finding.text)
    log.info("report         %s", out / "report.html")
    selectivity = zip(found.summary.layers, found.summary.selectivity().tolist(), strict=True)
    return {
        "analyze/acc1": found.correct / found.images,
        "analyze/images": float(found.images),
        **{f"analyze/selectivity/{k}": value for k, value in selectivity if np.isfinite(value)},
    }


def _measure(
    model: ImageClassifier,
    datamodule: LightningDataModule,
    split: str,
    layers: Sequence[str] | None,
    chosen: Sequence[int],
    bins: int,
) -> _Found:
    device = device_of(model)
    require_gates(model.backbone)
    with Taps(model, hidden=True) as taps:
        kept = select_layers(taps.layers, layers)
        statistics = _statistics(taps, kept, model.num_classes, chosen, bins)
        statistics.on(device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        images, example = 0, None
        for batch in record(model, split_batches(datamodule, split, device), taps):
            gates, hidden = ([calls[k] for k in kept] for calls in (batch.gates, batch.hidden))
            statistics.update(gates, hidden, batch.labels)
            correct += (predicted(batch.logits) == batch.labels).sum()
            images += len(batch.labels)
            example = batch.images[:1] if example is None else example
        last: dict[str, Any] = {
            layer: parts.expand.weight for layer, parts in taps.excitations.items()
        }
    summary = statistics.summary()
    assert example is not None  # record() yields at least one batch
    costs = [cost for cost in excitation_cost(model, example) if cost.layer in summary.layers]
    return _Found(summary, costs, diagnose(summary, last), int(correct), images)


def _statistics(
    taps: Taps, kept: Sequence[int], num_classes: int, chosen: Sequence[int], bins: int
) -> ExcitationStatistics:
    channels = [taps.channels[k] for k in kept]
    classes: Sequence[int] = range(num_classes)
    size = 2 * 8 * num_classes * sum(channels)
    if size > MOST_STATE:
        log.warning(
            "The moments of %d classes would take %.1f GB. Only the %d chosen classes are kept, "
            "and selectivity is computed among them.",
            num_classes,
            size / 1e9,
            len(chosen),
        )
        classes = chosen
    lower, upper = taps.ends
    return ExcitationStatistics(
        [taps.layers[k] for k in kept],
        channels,
        [taps.hidden[k] for k in kept],
        bins=bins,
        lower=lower,
        upper=upper,
        classes=classes,
    )


def _facts(
    model: ImageClassifier, datamodule: LightningDataModule, split: str, found: _Found
) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    options = {key: model.hparams.get(key) for key in ("name", "depth", "ratio")}
    network = [type(model.backbone).__name__]
    network += [f"{key} {value}" for key, value in options.items() if value is not None]
    gates = f"{len(found.summary.layers)}, {sum(found.summary.channels):,} channels"
    return {
        "Network": ", ".join([*network, f"{parameters:,} parameters"]),
        "Gates": gates,
        "Data": f"{type(datamodule).__name__.removesuffix('DataModule')}, {split}",
        "Images": f"{found.images:,}",
        "Accuracy": f"{100 * found.correct / found.images:.2f} %",
    }


def _picture(drawing: Drawing, folder: Path) -> Section:
    """Draw the figure for light and dark, and save the light one in the folder."""
    picture = draw_both(drawing.draw)
    (folder / f"{drawing.name}.png").write_bytes(picture.light)
    return Section(drawing.title, drawing.text, picture_html(picture, drawing.title))


def _save_arrays(summary: ExcitationSummary, path: Path) -> None:
    means = [summary.mean(label) for label in summary.classes]
    np.savez_compressed(
        path,
        layers=np.array(summary.layers),
        channels=np.array(summary.channels),
        edges=summary.edges,
        counts=summary.histogram(),
        means=summary.mean(),
        stds=summary.std(),
        classes=np.array(summary.classes),
        class_means=np.stack(means),
        selectivity=summary.selectivity(),
    )
