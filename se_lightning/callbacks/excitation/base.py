"""Base of the callbacks that record gates; they share one recorder during validation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from se_lightning.excitation import ExcitationStatistics, ExcitationSummary, Taps, choose_classes
from se_lightning.lightning import Callback, LightningModule, Trainer, TrainerFn
from se_lightning.models.layers.head import count_classes
from se_lightning.modules.batches import labels_of

__all__ = ["ExcitationCallback", "Wanted"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a callback needs recorded."""

    bins: int = 0  # number of bins of the histograms; 0 for the default
    classes: tuple[int, ...] = ()  # labels whose moments are kept separately
    hidden: bool = False  # whether to record hidden units
    examines: bool = False  # whether the callback reports NaN and gates never executed


class ExcitationCallback(Callback):
    """Base class of the callbacks that record gates during validation, in any Trainer.

    The callbacks of a trainer share one recorder during validation, on the device. Nothing is
    recorded in training or in the sanity check. A subclass defines in :meth:`wanted` what to
    record. Rank 0 gets the summary over all ranks, in :meth:`on_summary` after each validation and
    in :meth:`on_last_summary` at the end of the run.

    Attributes:
        summary: Summary of the last validation; None before it, or if the model has no gates.
    """

    summary: ExcitationSummary | None = None
    _recorder: "_Recorder | None" = None

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:
        """Return what to record."""
        return Wanted()

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Use the summary of a validation epoch. Called on rank 0 only."""

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Use the last summary at the end of the run. Called on rank 0 only."""

    def _leader(self, trainer: Trainer) -> "ExcitationCallback":
        return _siblings(trainer)[0]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add hooks to the gates before the first compiled call, which would ignore later ones."""
        self.teardown(trainer, pl_module, stage)  # an earlier run may have raised an exception
        if stage not in ("fit", "validate"):
            return
        self.summary = None
        if self is self._leader(trainer):
            wants = [callback.wanted(trainer, pl_module) for callback in _siblings(trainer)]
            self._recorder = _Recorder(pl_module, wants)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if self._recorder is not None:
            self._recorder.taps.remove()
        self._recorder = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._recorder is not None:
            self._recorder.start(pl_module.device)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count how many samples of a loader belong to this rank."""
        if self._recorder is not None and batch_idx == 0:
            self._recorder.left = _own_samples(_val_loader(trainer, dataloader_idx))

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._recorder is not None and trainer.sanity_checking:
            self._recorder.taps.take()  # discard
        elif self._recorder is not None:
            self._recorder.add(class_labels(batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduce over all ranks, and call the summary hooks on rank 0."""
        if self._recorder is not None:
            self._recorder.taps.pause()
        leader = self._leader(trainer)
        if leader._recorder is None or trainer.sanity_checking:
            return
        if self is leader:
            self.summary = leader._recorder.finish()
        else:
            self.summary = leader.summary
        if trainer.is_global_zero and self.summary is not None:
            self.on_summary(trainer, self.summary)
            if trainer.state.fn == TrainerFn.VALIDATING:
                self.on_last_summary(trainer, self.summary)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.is_global_zero and self.summary is not None:
            self.on_last_summary(trainer, self.summary)


class _Recorder:
    """Taps and statistics of one run."""

    def __init__(self, model: nn.Module, wants: Sequence[Wanted]) -> None:
        self.taps = Taps(model, hidden=any(want.hidden for want in wants))
        self.left: int | None = None
        self._examined = any(want.examines for want in wants)
        self._warned: set[str] = set()
        self.statistics: ExcitationStatistics | None = None
        if not self.taps.layers:
            log.warning(
                "No squeeze-and-excitation gates in the model, so no excitations are recorded. "
                "se_lightning.models.add_excitation adds gates to any network."
            )
            return
        if self.taps.recompiles:
            log.info("The network will be recompiled with taps on its gates.")
        lower, upper = self.taps.ends
        self.statistics = ExcitationStatistics(
            self.taps.layers,
            self.taps.channels,
            self.taps.hidden,
            bins=max(want.bins for want in wants) or 64,
            lower=lower,
            upper=upper,
            classes=sorted({label for want in wants for label in want.classes}),
        )

    def start(self, device: torch.device) -> None:
        if self.statistics is not None:
            self.statistics.on(device).reset()
            self.taps.record()

    def add(self, labels: Tensor | None) -> None:
        if self.statistics is None:
            return
        gates, hidden = self.taps.take()
        if self.left is not None:
            rows = next((len(calls[0]) for calls in gates if calls), 0)
            size = rows if labels is None else len(labels)
            keep = min(size, self.left)
            self.left -= keep
            gates, hidden = (_first(calls, keep, size) for calls in (gates, hidden))
            labels = None if labels is None else labels[:keep]
        self.statistics.update(gates, hidden, labels)

    def finish(self) -> ExcitationSummary | None:
        if self.statistics is None:
            return None
        summary = self.statistics.summary()
        self._warn(summary)
        return summary

    def _warn(self, summary: ExcitationSummary) -> None:
        """Warn about values that the statistics leave out, once per run and layer."""
        unseen = set(summary.unseen) - self._warned
        if unseen and not self._examined:
            log.warning(
                "No gates recorded for %s: the forward pass never executes it, or runs scripted or "
                "exported code without hooks.",
                ", ".join(layer for layer in summary.layers if layer in unseen),
            )
        self._warned |= unseen
        ends = f"[{summary.edges[0]:g}, {summary.edges[-1]:g}]"
        lost = summary.histogram()[:, len(summary.edges) - 1 :].tolist()
        for layer, (nan, outside) in zip(summary.layers, lost, strict=True):
            nan = 0 if self._examined else nan
            if (nan or outside) and layer not in self._warned:
                self._warned.add(layer)
                log.warning("%s: %d gates are NaN, %d outside %s.", layer, nan, outside, ends)


def _siblings(trainer: Trainer) -> list[ExcitationCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, ExcitationCallback)]


def class_labels(batch: Any) -> Tensor | None:
    """Return the labels of a batch, (images, labels) or a mapping, if they are integers."""
    found = labels_of(batch)
    if isinstance(found, Tensor) and found.shape[1:] == (1,):
        found = found.flatten()
    if not isinstance(found, Tensor) or found.ndim != 1 or found.is_floating_point():
        return None
    return found.long()


def known_classes(
    trainer: Trainer, pl_module: LightningModule
) -> tuple[int | None, Sequence[str] | None]:
    """Return the number and names of the classes, if the data or the module define them."""
    data = getattr(trainer, "datamodule", None)
    count = getattr(data, "num_classes", None)
    count = count or count_classes(getattr(pl_module, "num_classes", None))
    return count, getattr(data, "class_names", None)


def chosen_classes(
    classes: Sequence[int | str] | int | None, trainer: Trainer, pl_module: LightningModule
) -> dict[int, str]:
    """Return the names of the chosen classes by label.

    Raises:
        ValueError: If a class does not exist.
    """
    return choose_classes(classes, *known_classes(trainer, pl_module))


def _first(calls: list[list[Tensor]], keep: int, size: int) -> list[list[Tensor]]:
    """Return the rows of a batch's first samples."""
    if keep == size:
        return calls
    return [[call[: keep * (len(call) // size)] for call in each] for each in calls]


def _val_loader(trainer: Trainer, index: int) -> Any:
    loaders = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return loaders[index] if isinstance(loaders, list | tuple) else loaders


def _own_samples(loader: Any) -> int | None:
    """Return the number of this rank's samples that are not padding; None means all of them.

    Lightning adds a DistributedSampler to data sets that do not shard themselves. It repeats its
    first samples until all ranks have the same number.
    """
    sampler = getattr(loader, "sampler", None)
    if (
        not isinstance(loader, DataLoader)
        or loader.batch_size is None
        or not isinstance(sampler, DistributedSampler)
    ):
        return None
    size = len(sampler.dataset)  # type: ignore[arg-type]
    return len(range(sampler.rank, size, sampler.num_replicas))
