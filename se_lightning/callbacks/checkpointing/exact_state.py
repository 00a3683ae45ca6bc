"""State that a checkpoint needs, besides that of Lightning, to resume a fit bit for bit."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from se_lightning.callbacks.checkpointing.relocation import relocate
from se_lightning.data.position import next_batch
from se_lightning.data.transforms.sample_rng import sample_seeds
from se_lightning.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    TrainerFn,
    is_lightnings,
)

__all__ = ["ExactState"]

_REPORTING = ("LearningRateMonitor", "ProgressBar")  # they would report the epoch twice


class ExactState(Callback):
    """Callback that makes a resumed fit identical to an uninterrupted one, bit for bit.

    Lightning restores weights, optimizer and counters. This callback adds the rest:

    - Random numbers of the network (dropout, stochastic depth, shake-shake) and of other callbacks:
      torch, NumPy and Python are reseeded for each batch, and at the start of each epoch and each
      evaluation, from (seed, epoch, batch, rank), so there is no state to save.
    - The paths of the checkpoints, if the folder of the run was moved or copied.
    - Weights in double precision, which Lightning would load into single precision first.
    - What callbacks without a state of their own do when an epoch starts, which Lightning leaves
      out if the run resumes within the epoch (e.g. GradientAccumulationScheduler).
    - Metrics in the middle of an epoch, for every rank, and the values logged last, which other
      callbacks monitor.
    - The number of rows written by loggers (:class:`se_lightning.loggers.ContinuedCSVLogger`).

    The datamodules restore the data: order and augmentation are functions of seed, epoch and
    sample, and they save the position within the epoch.

    Args:
        seed: Seed of the random numbers.

    Raises:
        MisconfigurationException: If a checkpoint that was saved within an epoch is loaded with
            another number of processes, or if the best checkpoint of the run is missing.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._logged: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert the weights before Lightning loads a checkpoint, and extend its loop."""
        if stage != "fit":
            return
        trainer.precision_plugin.convert_module(pl_module)
        loop = trainer.fit_loop

        def on_advance_start() -> None:
            type(loop).on_advance_start(loop)
            if loop.restarted_mid_epoch:
                _start_epoch(trainer, pl_module)

        vars(loop)["on_advance_start"] = on_advance_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore Lightning's loop."""
        vars(trainer.fit_loop).pop("on_advance_start", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._reseed(trainer, 0, "epoch")

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._reseed(trainer, batch_idx, "network")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._reseed(trainer, trainer.global_step, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._reseed(trainer, 0, "epoch end")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._reseed(trainer, 0, "test")

    def _reseed(self, trainer: Trainer, index: int, purpose: str) -> None:
        key = np.array([index * trainer.world_size + trainer.global_rank])
        (seed,) = sample_seeds(self.seed, trainer.current_epoch, key, purpose)
        torch.manual_seed(int(seed))
        np.random.seed(int(seed) % 2**32)  # noqa: NPY002 - the global generator is what users draw from
        random.seed(int(seed))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Collect the metrics of all ranks. Called on every rank."""
        loggers = trainer.loggers if trainer.is_global_zero else []
        rows = [getattr(logger, "rows", None) for logger in loggers]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["exact_state"] = {"rows": rows, "metrics": [], "logged": logged}
        if next_batch(trainer)[1]:  # metrics are empty or reset between epochs
            mine = {name: _state(metric) for name, metric in _metrics(pl_module)}
            ranks: list[Any] = [mine]
            if trainer.world_size > 1:
                ranks = [None] * trainer.world_size
                distributed.all_gather_object(ranks, mine)
            checkpoint["exact_state"]["metrics"] = ranks

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the metrics of each rank, and remove later rows from the logs."""
        relocate(trainer, checkpoint)
        state = checkpoint.get("exact_state")
        if state is None or trainer.state.fn != TrainerFn.FITTING:
            return
        ranks, metrics = state["metrics"], dict(_metrics(pl_module))
        if ranks and len(ranks) != trainer.world_size:
            raise MisconfigurationException(
                f"The checkpoint was saved within an epoch by {len(ranks)} processes, but this run "
                f"has {trainer.world_size}. Resume with trainer.devices={len(ranks)}, or start a "
                "new run from its weights: model.weights=..."
            )
        self._logged = {name: torch.tensor(value) for name, value in state["logged"].items()}
        for name, values in ranks[trainer.global_rank].items() if ranks else ():
            if name not in metrics:  # of a second validation loader; they start at zero
                continue
            for key, value in values.items():
                if isinstance(value, Tensor):
                    value = value.to(metrics[name].device, copy=True)
                setattr(metrics[name], key, value)
        if trainer.is_global_zero:
            for logger, rows in zip(trainer.loggers, state["rows"], strict=False):
                if rows is not None and hasattr(logger, "keep"):
                    logger.keep(rows)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the logs if the fit starts from scratch."""
        if trainer.is_global_zero and trainer.ckpt_path is None and not trainer.global_step:
            for logger in trainer.loggers:
                if hasattr(logger, "keep"):
                    logger.keep(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the values logged last."""
        self._restore_logged(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore them even if no training was left to do."""
        self._restore_logged(trainer)

    def _restore_logged(self, trainer: Trainer) -> None:
        trainer.callback_metrics.update(self._logged)
        self._logged = {}


def _start_epoch(trainer: Trainer, pl_module: LightningModule) -> None:
    """Call the hook that Lightning leaves out in the middle of an epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        stateless = type(callback).state_dict.__qualname__ == Callback.state_dict.__qualname__
        if stateless and not is_lightnings(callback, *_REPORTING):
            callback.on_train_epoch_start(trainer, pl_module)


def _metrics(pl_module: LightningModule) -> list[tuple[str, Metric]]:
    return [(name, each) for name, each in pl_module.named_modules() if isinstance(each, Metric)]


def _state(metric: Metric) -> dict[str, Any]:
    """Return the state of a metric, which torchmetrics leaves out of state dicts by default."""
    state = {name: getattr(metric, name) for name in metric._defaults}
    cpu = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
    return cpu | {"_update_count": metric._update_count}
