"""What a checkpoint must hold besides, so that a fit goes on from it bit for bit."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed
from torchmetrics import Metric

from se_lightning.data.base import next_batch
from se_lightning.data.transforms.sample_rng import sample_seeds

__all__ = ["ExactState"]


class ExactState(Callback):
    """Makes a fit that is resumed from a checkpoint the unbroken one, to the last bit.

    Lightning restores weights, optimizer and counters. This adds what it leaves out:

    - random numbers of the network (dropout, stochastic depth, shake-shake): torch is seeded anew
      for each batch, by (seed, epoch, batch, rank), so that there is no state to keep;
    - metrics in the midst of an epoch, those of every rank, and the values that were logged last,
      by which other callbacks judge;
    - the rows that loggers have written so far (:class:`se_lightning.loggers.ContinuedCSVLogger`).

    The data's part (order and augmentation as a function of seed, epoch and sample; the position
    within the epoch) is that of the datamodules.

    Args:
        seed: of the network's random numbers in training.

    Raises:
        MisconfigurationException: when a checkpoint from within an epoch of another number of
            processes is loaded.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._logged: dict[str, Tensor] = {}

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        key = np.array([batch_idx * trainer.world_size + trainer.global_rank])
        (seed,) = sample_seeds(self.seed, trainer.current_epoch, key, "network")
        torch.manual_seed(int(seed))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Collect the metrics of all ranks; every rank is here."""
        loggers = trainer.loggers if trainer.is_global_zero else []
        rows = [getattr(logger, "rows", None) for logger in loggers]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["exact_state"] = {"rows": rows, "metrics": [], "logged": logged}
        if next_batch(trainer)[1]:  # between two epochs they are empty, or will be
            mine = {name: _state(metric) for name, metric in _metrics(pl_module)}
            ranks: list[Any] = [mine]
            if trainer.world_size > 1:
                ranks = [None] * trainer.world_size
                distributed.all_gather_object(ranks, mine)
            checkpoint["exact_state"]["metrics"] = ranks

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give each rank its metrics back, and take later rows out of the logs."""
        state = checkpoint.get("exact_state")
        if state is None or trainer.state.fn != TrainerFn.FITTING:
            return
        ranks, metrics = state["metrics"], dict(_metrics(pl_module))
        if ranks and len(ranks) != trainer.world_size:
            raise MisconfigurationException(
                f"The checkpoint is within an epoch of {len(ranks)} processes, and this run has "
                f"{trainer.world_size}: go on with trainer.devices={len(ranks)}, or begin a new "
                "run with its weights (model.weights=)."
            )
        self._logged = {name: torch.tensor(value) for name, value in state["logged"].items()}
        for name, values in ranks[trainer.global_rank].items() if ranks else ():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    value = value.to(metrics[name].device, copy=True)
                setattr(metrics[name], key, value)
        if trainer.is_global_zero:
            for logger, rows in zip(trainer.loggers, state["rows"], strict=False):
                if rows is not None and hasattr(logger, "keep"):
                    logger.keep(rows)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the logs anew where the fit begins."""
        if trainer.is_global_zero and trainer.ckpt_path is None and not trainer.global_step:
            for logger in trainer.loggers:
                if hasattr(logger, "keep"):
                    logger.keep(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know what was logged last."""
        self._know(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know it also where nothing was left to train."""
        self._know(trainer)

    def _know(self, trainer: Trainer) -> None:
        trainer.callback_metrics.update(self._logged)
        self._logged = {}


def _metrics(pl_module: LightningModule) -> list[tuple[str, Metric]]:
    return [(name, each) for name, each in pl_module.named_modules() if isinstance(each, Metric)]


def _state(metric: Metric) -> dict[str, Any]:
    """Return what a metric has counted; torchmetrics leaves it out of a state dict by default."""
    state = {name: getattr(metric, name) for name in metric._defaults}
    cpu = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
    return cpu | {"_update_count": metric._update_count}
