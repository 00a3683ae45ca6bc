"""Cost of the excitation callbacks: validation batches with and without them, alternating."""

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from se_lightning.arguments import positive_integer
from se_lightning.atomic import write_json
from se_lightning.callbacks import (
    ClassSelectivity,
    ExcitationCurves,
    ExcitationHistogram,
    GateDoctor,
)
from se_lightning.callbacks.excitation.base import ExcitationCallback
from se_lightning.lightning import Callback, LightningModule, Trainer
from se_lightning.models import create_model
from se_lightning.modules import ImageClassifier
from se_lightning.tasks.timing import machine, synchronize

__all__ = ["benchmark_excitation"]

log = logging.getLogger(__name__)


class _Clock(Callback):
    """Times each batch from :class:`_Start`, the first callback, to itself, the last one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start = self.epoch_end_s = 0.0
        self.state_bytes = 0

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        synchronize(trainer.strategy.root_device)
        self.times.append(time.perf_counter() - self.start)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_end_s = time.perf_counter() - self.start


class _Start(Callback):
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        recorder = _leader(trainer)._recorder
        assert recorder is not None
        assert recorder.statistics is not None
        self.clock.state_bytes = recorder.statistics.nbytes
        if batch_idx % 2:
            recorder.taps.record()
        else:
            recorder.taps.pause()
        synchronize(trainer.strategy.root_device)
        self.clock.start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(trainer.strategy.root_device)
        self.clock.start = time.perf_counter()


def _leader(trainer: Trainer) -> ExcitationCallback:
    return next(c for c in trainer.callbacks if isinstance(c, ExcitationCallback))  # type: ignore[attr-defined]


class _Images(torch.utils.data.Dataset):
    """The same random batch, repeated."""

    def __init__(self, batches: int, size: int, side: int) -> None:
        self.batches = batches
        self.images = torch.rand(size, 3, side, side)
        self.labels = torch.randint(0, 1000, (size,))

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images, self.labels


def benchmark_excitation(
    *,
    folder: str,
    name: str = "se_resnet50",
    batch_size: int = 8,
    image_size: int = 224,
    pairs: int = 30,
) -> dict[str, float]:
    """Measure the time that all excitation callbacks together add to a validation batch.

    Runs one validation on random images with 1000 classes, in which the callbacks record every
    second batch; two consecutive batches are a pair. The time at the end of the epoch, including
    the plots, is reported separately. Writes ``benchmark_excitation.json``.

    Args:
        folder: Output folder.
        name: Network, one of :func:`se_lightning.models.list_models`.
        batch_size: Images per batch.
        image_size: Side length of the images in pixels.
        pairs: Number of pairs; the ratio is their median. Three more pairs warm up.

    Returns:
        ``ratio``, ``epoch_end_s`` and ``state_mb``.

    Raises:
        ValueError: If `batch_size` or `pairs` is not a positive integer.
    """
    for argument, value in (("batch_size", batch_size), ("pairs", pairs)):
        positive_integer(argument, value)
    network: nn.Module = create_model(name, num_classes=1000)
    clock = _Clock()
    observers = [ExcitationHistogram(), ExcitationCurves(), ClassSelectivity(), GateDoctor()]
    trainer = Trainer(
        devices=1,
        default_root_dir=folder,
        logger=False,
        callbacks=[_Start(clock), *observers, clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = _Images(2 * (pairs + 3), batch_size, image_size)
    loader = DataLoader(batches, batch_size=None)
    trainer.validate(ImageClassifier(network, 1000), loader, verbose=False)
    without, recorded = clock.times[6::2], clock.times[7::2]
    ratios = [b / a for a, b in zip(without, recorded, strict=True)]
    result: dict[str, Any] = {
        "model": name,
        "batch_size": batch_size,
        "image_size": image_size,
        "device": str(trainer.strategy.root_device),
        "without_s": statistics.median(without),
        "with_s": statistics.median(recorded),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "epoch_end_s": clock.epoch_end_s,
        "state_mb": clock.state_bytes / 1e6,
    }
    log.info(
        "%(model)s, batch size %(batch_size)d: %(without_s).3f s without, %(with_s).3f s with "
        "callbacks; median ratio %(ratio).4f. End of epoch: %(epoch_end_s).1f s. State: "
        "%(state_mb).1f MB on the device.",
        result,
    )
    path = Path(folder) / "benchmark_excitation.json"
    write_json(path, {"machine": machine(), **result})
    return {key: result[key] for key in ("ratio", "epoch_end_s", "state_mb")}
