"""History of the validations of a fit, which continues when the fit is resumed."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from se_lightning.callbacks.excitation.base import ExcitationCallback
from se_lightning.callbacks.publish import save_arrays
from se_lightning.lightning import LightningModule, Trainer, TrainerFn

__all__ = ["History", "HistoryCallback", "epochs_trained", "moment"]

log = logging.getLogger(__name__)


def epochs_trained(trainer: Trainer) -> float:
    """Return the number of epochs trained before the current validation, including fractions.

    NaN if unknown: in ``trainer.validate`` of a checkpoint.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return float(trainer.current_epoch) if trainer.ckpt_path is None else math.nan
    done, progress = float(trainer.current_epoch), trainer.fit_loop.epoch_loop.batch_progress
    if progress.is_last_batch:
        return done + 1
    return done + progress.current.ready / trainer.num_training_batches


def moment(trainer: Trainer) -> str:
    """Return a phrase for titles that identifies the weights being validated."""
    epochs = epochs_trained(trainer)
    if math.isnan(epochs):
        return f", {Path(str(trainer.ckpt_path)).name}"
    return f", after {epochs:.4g} epoch{'s' * (epochs != 1)}" if epochs else ""


class History:
    """Arrays of each validation, stacked to (E, ...), and arrays shared by all of them.

    Example:
        >>> history = History()
        >>> for epoch in (1, 2):
        ...     values = {"means": np.array([0.25, 0.5]) * epoch}
        ...     history.add(epoch, 20 * epoch, values, {"layers": ["first", "second"]})
        >>> arrays = history.arrays()
        >>> list(arrays), arrays["means"].tolist()
        (['epochs', 'steps', 'layers', 'means'], [[0.25, 0.5], [0.5, 1.0]])
    """

    def __init__(self) -> None:
        self._common: dict[str, np.ndarray] = {}
        self._values: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._values.get("epochs", ()))

    def add(
        self,
        epochs: float,
        step: int,
        values: Mapping[str, np.ndarray],
        common: Mapping[str, Any],
    ) -> None:
        """Add a validation. If the shared arrays differ, earlier validations are discarded."""
        arrays = {name: np.asarray(each) for name, each in common.items()}
        other = [k for k, v in self._common.items() if not np.array_equal(v, arrays[k])]
        if other:
            log.info("Discarding earlier validations, which had other %s.", " and ".join(other))
            self._values = {}
        self._common = arrays
        when = {"epochs": np.float64(epochs), "steps": np.int64(step)}
        for name, each in (when | dict(values)).items():
            self._values.setdefault(name, []).append(np.asarray(each))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name."""
        stacked = {name: np.stack(each) for name, each in self._values.items()}
        when = {name: stacked.pop(name) for name in ("epochs", "steps") if name in stacked}
        return when | self._common | stacked

    def state_dict(self) -> dict[str, Any]:
        """Return lists and tensors, which ``torch.load(weights_only=True)`` accepts."""
        if not self:
            return {}
        values = {name: torch.from_numpy(np.stack(each)) for name, each in self._values.items()}
        return {"common": {k: v.tolist() for k, v in self._common.items()}, "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self._common = {name: np.asarray(each) for name, each in state["common"].items()}
        self._values = {name: list(each.cpu().numpy()) for name, each in state["values"].items()}


class HistoryCallback(ExcitationCallback):
    """Base class of the callbacks that keep arrays of each validation of a fit.

    A fit starts with an empty history, or with that of the checkpoint it resumes from.
    ``trainer.validate`` does not add to it.
    """

    def __init__(self) -> None:
        self.history = History()
        self._stage: str | None = None

    def keep(
        self,
        trainer: Trainer,
        file: str,
        values: Mapping[str, np.ndarray],
        common: Mapping[str, Any],
    ) -> None:
        """Save the arrays of this and all earlier validations of the fit as ``<file>.npz``.

        In ``trainer.validate``, save those of this validation as ``<file>_validate.npz``.
        """
        fitting = trainer.state.fn == TrainerFn.FITTING
        history = self.history if fitting else History()
        history.add(epochs_trained(trainer), trainer.global_step, values, common)
        save_arrays(trainer, file if fitting else f"{file}_validate", **history.arrays())

    def course(self, trainer: Trainer) -> dict[str, np.ndarray] | None:
        """Return the history of a fit if it has more than one validation."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        return self.history.arrays() if fitting and len(self.history) > 1 else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        super().setup(trainer, pl_module, stage)
        self._stage = stage
        # A trainer that has trained before keeps its history.
        if stage == "fit" and not trainer.current_epoch:
            self.history = History()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        super().teardown(trainer, pl_module, stage)
        self._stage = None

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history of a checkpoint, unless it is only validated."""
        if self._stage in (None, "fit"):
            self.history.load_state_dict(state_dict)
