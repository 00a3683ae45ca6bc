"""Removal of gates that never vary."""

import copy
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from se_lightning.arguments import one_of
from se_lightning.atomic import write_json, write_text
from se_lightning.checkpoint import read_checkpoint
from se_lightning.excitation.folding.fold import FoldReport, fold_gates
from se_lightning.excitation.taps import require_gates
from se_lightning.lightning import LightningDataModule, LightningModule
from se_lightning.models.layers.head import predicted
from se_lightning.models.surgery.folded import folded
from se_lightning.models.weights.structure import structure
from se_lightning.modules import ImageClassifier
from se_lightning.tasks.splits import SPLITS, device_of, split_batches

__all__ = ["fold"]

log = logging.getLogger(__name__)

# Entries of a checkpoint that belong to the training run rather than the network.
_OF_THE_RUN = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "MixedPrecision")
PAIRS, SECONDS = 10, 30.0


def fold(
    model: LightningModule,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
    *,
    folder: str,
    split: str = "val",
    tolerance: float = 0.01,
    test_split: str = "test",
) -> dict[str, float]:
    """Fold gates that do not vary into the surrounding weights, and test the effect.

    Writes ``folded.ckpt``, which ``task=test`` and ``load_from_checkpoint`` accept, ``fold.json``
    and ``fold.md``; nothing if no gate is constant. The given checkpoint and model are not changed.

    Args:
        model: An ImageClassifier in eval mode, on its device, with the weights of ``ckpt_path``.
        datamodule: Datamodule that has been set up.
        ckpt_path: Checkpoint of the model.
        folder: Output folder.
        split: Split on whose images a gate must not vary.
        tolerance: Largest distance of a constant gate from its channel's mean.
        test_split: Split on which accuracy is measured before and after.

    Returns:
        ``fold/gates``, ``fold/folded`` and, if any gate is folded, ``fold/acc1_before``,
        ``fold/acc1_after`` and ``fold/speedup``.

    Raises:
        ValueError: If a split does not exist, `tolerance` is negative, there is no `ckpt_path`, or
            the model is not an ImageClassifier or has no gates.
    """
    for name, value in (("split", split), ("test_split", test_split)):
        one_of(name, value, SPLITS)
    if ckpt_path is None or not isinstance(model, ImageClassifier):
        raise ValueError("task=fold needs the checkpoint of a se_lightning model: ckpt_path=...")
    require_gates(model)
    device = device_of(model)
    without = copy.deepcopy(model).eval()
    batches = (images for images, _ in split_batches(datamodule, split, device))
    report = fold_gates(without.backbone, batches, tolerance, prefix="backbone.")
    metrics = {"fold/gates": float(len(report.gates)), "fold/folded": float(len(report.folded))}
    if not report.folded:
        log.info("%s", _why_not(report, split))
        return metrics
    images = next(split_batches(datamodule, test_split, device))[0]
    metrics |= {
        "fold/acc1_before": _accuracy(model, split_batches(datamodule, test_split, device)),
        "fold/acc1_after": _accuracy(without, split_batches(datamodule, test_split, device)),
        "fold/speedup": _speedup(model, without, images),
    }
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(_checkpoint(ckpt_path, without), out / "folded.ckpt")
    facts: dict[str, Any] = {"ckpt_path": str(ckpt_path), "split": split, "test_split": test_split}
    facts |= {"batch_size": len(images), "device": str(device), **metrics}
    write_json(out / "fold.json", facts | asdict(report))
    text = _summary(report, metrics, split, test_split, len(images))
    write_text(out / "fold.md", text + "\n" + _table(report))
    log.info("%s", text)
    log.info("checkpoint     %s", out / "folded.ckpt")
    return metrics


def _why_not(report: FoldReport, split: str) -> str:
    near = report.nearest
    what = (
        f"No gate is constant within {report.tolerance:g} over {report.samples} images of {split}"
    )
    if near is None:
        return f"{what}: all were NaN or never executed. No file is written."
    if near.spread <= report.tolerance:
        return f"{what} and can be removed ({near.layer}: {near.reason}). No file is written."
    return (
        f"{what}. The closest is {near.layer}, whose gates are up to {near.spread:.3g} from their "
        "channels' means. No file is written."
    )


def _accuracy(model: LightningModule, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    right, count = 0, 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((predicted(model(images)) == labels).sum())
            count += len(labels)
    return right / count


def _seconds(model: LightningModule, images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def _speedup(before: LightningModule, after: LightningModule, images: Tensor) -> float:
    """Return the median ratio of the times before and after, over alternating pairs."""
    ratios: list[float] = []
    with torch.no_grad():
        for model in (before, after):  # warm up
            _seconds(model, images)
        start = time.perf_counter()
        while len(ratios) < PAIRS and (time.perf_counter() - start < SECONDS or not ratios):
            ratios.append(_seconds(before, images) / _seconds(after, images))
    return statistics.median(ratios)


def _checkpoint(path: str, model: ImageClassifier) -> dict[str, Any]:
    """Return the checkpoint with the folded network instead of the original one."""
    content = {k: v for k, v in read_checkpoint(path).items() if k not in _OF_THE_RUN}
    content["state_dict"] = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
    content["se_lightning"] = {
        **content["se_lightning"],
        "structure": structure(model.backbone),
        "folded": folded(model.backbone),
    }
    return content


def _summary(
    report: FoldReport, metrics: dict[str, float], split: str, test_split: str, batch: int
) -> str:
    before, after = (100 * metrics[f"fold/acc1_{when}"] for when in ("before", "after"))
    return (
        f"{len(report.folded)} of {len(report.gates)} gates are constant within "
        f"{report.tolerance:g} over {report.samples} images of {split} and were removed. Accuracy "
        f"on {test_split}: {before:.2f} % before, {after:.2f} % after. Speedup of a forward pass "
        f"of {batch} images: {metrics['fold/speedup']:.2f}."
    )


def _table(report: FoldReport) -> str:
    rows = [
        f"| {gate.layer} | {gate.spread:.3g} | {gate.low:.3f} to {gate.high:.3f} | {gate.reason} |"
        for gate in report.gates
    ]
    head = ["", "| gate | largest distance from mean | means | |", "| --- | ---: | --- | --- |"]
    return "\n".join([*head, *rows, ""])
