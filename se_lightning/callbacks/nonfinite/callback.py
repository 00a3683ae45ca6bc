"""Callback that stops at or skips non-finite losses and gradients."""

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from se_lightning.arguments import one_of, positive_integer
from se_lightning.callbacks import publish
from se_lightning.callbacks.nonfinite import report
from se_lightning.callbacks.nonfinite.watch import Found, Watch
from se_lightning.lightning import Callback, LightningModule, Trainer

__all__ = ["NonFinite", "NonFiniteError"]

log = logging.getLogger(__name__)


class NonFiniteError(ValueError):
    """A loss or gradient is not finite; the message gives the place and remedies."""

    kind = "non_finite"  # in result.json


class _Step(NamedTuple):
    """An optimizer step: its number, its epoch, and the batches of its gradients."""

    number: int
    epoch: int
    batches: tuple[int, ...]


class NonFinite(Callback):
    """Callback that stops at or skips non-finite losses and gradients, in any Trainer.

    Loss and gradients are checked on the device before each optimizer step, after the reduction
    over ranks. With ``"stop"``, no step synchronizes with a GPU: results are read every
    ``log_every_n_steps`` steps, before each validation and before anything is saved, so that bad
    weights never replace good ones. On a CPU, and with ``log_every_n_steps=1``, they are read
    before the weights change, and the batch is run again to find the first bad layer.
    ``nonfinite.json`` in the trainer's root folder lists step, layers, and each rank's samples as
    indices of the training set (null if the loader is not from this package).

    With ``"skip"``, each step synchronizes with the GPU. A bad step changes neither weights nor
    optimizer state nor buffers (the statistics of batch norm); the learning rate schedule
    continues. The number of skipped steps is saved in checkpoints and logged as
    ``train/skipped_steps``.

    In fp16, the loss scaler handles infinite gradients, and only the loss is checked.

    Args:
        action: ``"stop"`` or ``"skip"``.
        patience: Number of consecutive bad steps that stop the run in any case.

    Attributes:
        skipped: Number of steps skipped so far.
        last_skipped: Number of the last skipped step, from 0; -1 before the first.

    Raises:
        ValueError: If `action` is neither ``"stop"`` nor ``"skip"``, or `patience` is not a
            positive integer.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[NonFinite("skip")], logger=False)
    """

    def __init__(self, action: str = "stop", patience: int = 10) -> None:
        one_of("action", action, ("stop", "skip"))
        positive_integer("patience", patience)
        self.action, self.patience = action, patience
        self.skipped, self.last_skipped, self._in_a_row = 0, -1, 0
        self._watch: Watch | None = None
        self._error: NonFiniteError | None = None
        self._failing = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the state; a checkpoint is loaded after this."""
        self._watch, self._error, self._failing = None, None, False
        if stage == "fit":
            self.skipped, self.last_skipped, self._in_a_row = 0, -1, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        device = trainer.strategy.root_device
        self._every = trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
        self._keeps_batch = device.type == "cpu" or self._every == 1
        # Lightning calls no callback before it saves weights only.
        alone = any(getattr(c, "save_weights_only", False) for c in trainer.checkpoint_callbacks)
        if self._keeps_batch or alone or self.action == "skip":
            self._every = 1
        self._watch = Watch(pl_module, device)
        self._steps: list[_Step] = []  # since the last read
        self._window: list[int] = []  # batches since the last step
        self._batch: tuple[Any, int] = (None, 0)
        self._bad_batch: tuple[Any, int] | None = None
        self._buffers = list(pl_module.buffers()) if self.action == "skip" else []
        self._good = [buffer.clone() for buffer in self._buffers]

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._window.append(batch_idx)
        self._batch = batch if self._keeps_batch else None, batch_idx

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Check the loss of a batch."""
        assert self._watch is not None
        self._watch.see_loss(loss)
        if self._keeps_batch and self._bad_batch is None and not math.isfinite(loss.item()):
            self._bad_batch = self._batch

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the loss and the gradients of a step."""
        assert self._watch is not None
        self._watch.see_step(gradients=getattr(trainer.precision_plugin, "scaler", None) is None)
        batches = tuple(self._window) or (self._batch[1],)  # with several optimizers
        self._steps.append(_Step(trainer.global_step, trainer.current_epoch, batches))
        self._window = []
        if len(self._steps) >= self._every:
            self._read(trainer, pl_module)

    def on_train_batch_end(self, *_: Any) -> None:
        """Release the batch."""
        self._batch = None, self._batch[1]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._read(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the remaining steps, and log the number of skipped ones with the epoch's metrics."""
        self._read(trainer, pl_module)
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_exception(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._failing = True

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to replace a good checkpoint with a bad one."""
        if self._error is not None:
            raise self._error
        self._read(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of skipped steps."""
        return {"skipped": self.skipped, "last": self.last_skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.skipped, self.last_skipped = state_dict["skipped"], state_dict["last"]
        self._in_a_row = state_dict["in_a_row"]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._watch = None

    def _read(self, trainer: Trainer, module: LightningModule) -> None:
        """Synchronize with the device and the other ranks, and handle a bad step."""
        if self._watch is None or not self._steps:
            return
        steps, self._steps = self._steps, []
        # A failing rank may save alone; the other ranks would not take part in a reduction.
        found = self._watch.read(_alone if self._failing else trainer.strategy.reduce)
        if found is not None:
            self._answer(trainer, module, steps[found.step], found)
        elif self.action == "skip":
            self._in_a_row = 0
            _copy(self._good, self._buffers)
        self._bad_batch = None

    def _answer(self, trainer: Trainer, module: LightningModule, step: _Step, found: Found) -> None:
        """Skip the step or stop the run."""
        record = self._record(trainer, module, step, found)
        if self.action == "skip":
            self._leave_out(trainer, module, step)
        stops = self.action == "stop" or self._in_a_row >= self.patience
        record = {"action": "stopped" if stops else "skipped", **record}
        path = Path(trainer.default_root_dir) / "nonfinite.json"
        if trainer.is_global_zero:
            report.append(path, record)
        if not stops:
            log.warning("%s Step skipped (%d so far).", report.what(record), self.skipped)
            return
        for logger in trainer.loggers:
            logger.save()
        text = report.message(trainer, record, path, in_a_row=self._in_a_row)
        self._error = NonFiniteError(text)
        raise self._error

    def _leave_out(self, trainer: Trainer, module: LightningModule, step: _Step) -> None:
        """Undo the forward passes, and leave the optimizer no gradients."""
        for parameter in module.parameters():
            parameter.grad = None
        _copy(self._buffers, self._good)
        self.skipped += 1
        self._in_a_row += 1
        self.last_skipped = step.number
        publish.send_metrics(trainer, {"train/skipped_steps": float(self.skipped)})

    def _record(
        self, trainer: Trainer, module: LightningModule, step: _Step, found: Found
    ) -> dict[str, Any]:
        """Collect the details from all ranks."""
        mine = self._of_this_rank(trainer, module, step, found)
        ranks = [mine] * (1 if self._failing else trainer.world_size)
        if len(ranks) > 1:
            torch.distributed.all_gather_object(ranks, mine)
        return {
            "step": step.number,
            "epoch": step.epoch,
            "batches": list(step.batches),
            "ranks": ranks,
            "layers": list(dict.fromkeys(name.rpartition(".")[0] for name in found.gradients)),
            "parameters": found.gradients,
            # In a late read, all weights are bad by now.
            "weights": report.bad_weights(module) if self._every == 1 else None,
        }

    def _of_this_rank(
        self, trainer: Trainer, module: LightningModule, step: _Step, found: Found
    ) -> dict[str, Any]:
        rank = trainer.global_rank
        loss = found.loss * trainer.accumulate_grad_batches  # Lightning divides by it
        mine: dict[str, Any] = {
            "rank": rank,
            "loss": loss if math.isfinite(loss) else str(loss),
            "output": None,
            "bad_rows": None,
            "bad_samples": None,
            "samples": report.sample_ids(trainer, step.epoch, step.batches, rank),
        }
        if self._bad_batch is not None:
            batch, number = self._bad_batch
            mine["bad_rows"] = rows = report.bad_rows(batch)
            ids = report.sample_ids(trainer, step.epoch, [number], rank)
            if ids is not None and len(ids) > max(rows, default=0):
                mine["bad_samples"] = [ids[row] for row in rows]
            if self.action == "stop":
                mine["output"] = report.first_bad_output(trainer, module, batch, number)
        return mine


def _alone(tensor: Tensor, *, reduce_op: str) -> Tensor:
    return tensor


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)
