"""``last.ckpt``, from which an interrupted run resumes."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from torch import distributed

from se_lightning.arguments import positive_integer
from se_lightning.callbacks.checkpointing.slurm import requeue
from se_lightning.lightning import (
    LightningModule,
    MisconfigurationException,
    ModelCheckpoint,
    Trainer,
    check_trainer,
    is_lightnings,
)
from se_lightning.ranks import Interrupted

__all__ = ["LastCheckpoint"]

log = logging.getLogger(__name__)
# Signals that clusters send before preemption; in SLURM, set by --signal.
_PREEMPTIONS = ("SIGUSR1", "SIGUSR2")
_PATIENCE = 3  # seconds


class LastCheckpoint(ModelCheckpoint):
    """Callback that saves ``last.ckpt`` after each epoch and, optionally, within epochs.

    It saves only at points where nothing is pending: after a batch has been trained on, validated
    and logged, with no gradients accumulated, or after an epoch and everything that belongs to it.
    A run resumed from it (``trainer.fit(ckpt_path="last")``) repeats nothing and skips nothing.
    ``ckpt_path="best"`` is the best checkpoint of another callback, if there is one.

    On SIGTERM, the run saves at the next such point and exits with code 143; another SIGTERM, a few
    seconds later, ends it at once. Under SLURM, SIGUSR1 and SIGUSR2 also requeue the job
    (``sbatch --signal=USR1@120 --requeue``).

    Args:
        dirpath: Folder of ``last.ckpt``. None means ``checkpoints`` in the trainer's
            ``default_root_dir``.
        every_n_steps: Also save every n optimizer steps.
        every_minutes: Also save when this many minutes have passed since the last save.

    Raises:
        ValueError: If `every_n_steps` is not a positive integer, or `every_minutes` is not above 0.
        MisconfigurationException: If the trainer has Lightning's StochasticWeightAveraging, whose
            runs cannot resume exactly.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
    ) -> None:
        if every_n_steps is not None:
            positive_integer("every_n_steps", every_n_steps)
        if every_minutes is not None and not every_minutes > 0:
            raise ValueError(f"`every_minutes` (={every_minutes!r}) must be above 0.")
        super().__init__(save_top_k=0)
        self._given = dirpath
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._saved = (-1, time.monotonic())  # step and time
        self._between_epochs = False
        self._resumed_at: int | None = None
        self._signal: int | None = None
        self._signalled = math.inf  # time of the signal
        self._handlers: dict[int, Any] = {}
        self._group: Any = None

    def _nothing(self, *_: Any) -> None:
        """Replace the hooks in which ModelCheckpoint saves, while something is pending."""

    on_train_batch_end = on_train_epoch_end = on_validation_end = on_train_end = _nothing  # type: ignore[assignment]

    def path(self, trainer: Trainer) -> Path:
        """Return the path of ``last.ckpt``."""
        folder = Path(self._given or Path(trainer.default_root_dir) / "checkpoints")
        return folder.expanduser() / "last.ckpt"

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return the candidate for Lightning's ``ckpt_path="last"``."""
        path = self.path(trainer)
        return {str(path)} if path.exists() else set()

    @property
    def state_key(self) -> str:
        """A key per folder, though there is no state to save."""
        return f"{type(self).__name__}{{{self._given!r}}}"

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        pass

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wrap the ends of both loops, where everything of a batch or an epoch is done.

        Lightning has no hooks there: ``on_train_batch_end`` and ``on_train_epoch_end`` are called
        before the values of that batch or epoch are logged, ``on_train_batch_start`` after the next
        one is counted.
        """
        check_trainer(self, trainer)
        self.dirpath = str(self.path(trainer).parent)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # Last, since the best checkpoint is that of `trainer.checkpoint_callback`, the first one.
        # Not in place: Lightning is iterating over the list.
        trainer.callbacks = [each for each in callbacks if each is not self] + [self]  # type: ignore[attr-defined]
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if any(is_lightnings(callback, "StochasticWeightAveraging") for callback in callbacks):
            raise MisconfigurationException(
                "A run with StochasticWeightAveraging cannot resume exactly: its checkpoints lack "
                "the progress of the average. Use se_lightning.EMA (callbacks=ema), or train "
                "without LastCheckpoint (callbacks.last_checkpoint=null)."
            )
        for loop, done in (
            (trainer.fit_loop, self._epoch_done),
            (trainer.fit_loop.epoch_loop, self._batch_done),
        ):
            # Not of the class: another LastCheckpoint may have wrapped it before.
            vars(loop)["on_advance_end"] = self._then(loop.on_advance_end, loop, done)

    def _then(self, method: Callable[..., None], loop: Any, more: Callable[..., None]) -> Any:
        def on_advance_end(*arguments: Any) -> None:
            if self._is_repeated(loop):
                return
            method(*arguments)
            if self in loop.trainer.callbacks:  # not in Lightning's search for a learning rate
                more(loop.trainer)

        return on_advance_end

    def _is_repeated(self, loop: Any) -> bool:
        """Return whether Lightning repeats this batch's end when it resumes from a validation."""
        progress = getattr(loop, "batch_progress", None)
        if progress is None or self._resumed_at is None:
            return False
        repeated, self._resumed_at = progress.total.completed == self._resumed_at, None
        loop._skip_next_val = loop._skip_next_val and not repeated
        return repeated

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which save or communicate within a step."""
        self._answer_signals()
        self._saved = (trainer.global_step, time.monotonic())
        if trainer.world_size > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")  # does not synchronize with a GPU

    def _answer_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        names = ("SIGTERM", *(_PREEMPTIONS if "SLURM_JOB_ID" in os.environ else ()))
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            self._handlers.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        # A signal sent to a process group and forwarded within it arrives twice at once.
        if number == signal.SIGTERM and time.monotonic() - self._signalled > _PATIENCE:
            raise Interrupted(number, "stopped at once on a second signal")
        if self._signal is None:
            log.info("%s: saving and stopping after this step.", signal.Signals(number).name)
            self._signal, self._signalled = number, time.monotonic()

    def _batch_done(self, trainer: Trainer) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.completed
        if progress.is_last_batch or done >= trainer.num_training_batches:
            return  # saved at the end of the epoch
        if done % trainer.accumulate_grad_batches:
            return
        number, due = self._asked(trainer)
        if number or due:
            self._save(trainer)
        self._end(trainer, number)

    def _epoch_done(self, trainer: Trainer) -> None:
        self._between_epochs = True
        try:
            self._save(trainer)
        finally:
            self._between_epochs = False
        number, _ = self._asked(trainer)
        self._end(trainer, number)

    def _asked(self, trainer: Trainer) -> tuple[int, bool]:
        """Return the signal received, or 0, and whether to save; the same on all ranks."""
        step, clock = self._saved
        number = self._signal or 0
        due = self.every_minutes is not None and time.monotonic() - clock > 60 * self.every_minutes
        if trainer.world_size > 1:
            both = torch.tensor([number, due], dtype=torch.int64)
            distributed.broadcast(both, 0, group=self._group)
            number, due = both.tolist()
        if self.every_n_steps is not None and trainer.global_step != step:
            due = due or trainer.global_step % self.every_n_steps == 0
        return number, bool(due)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved[0] or self._between_epochs:
            path = self.path(trainer)
            trainer.save_checkpoint(path, weights_only=False)
            self.last_model_path = self.best_model_path = str(path)
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.after_save_checkpoint(proxy(self))
        self._saved = (trainer.global_step, time.monotonic())

    def _end(self, trainer: Trainer, number: int) -> None:
        if not number:
            return
        if number != signal.SIGTERM and trainer.is_global_zero:
            requeue(trainer, self.path(trainer))
        step, run = trainer.global_step, trainer.default_root_dir
        raise Interrupted(number, f"saved at step {step}; continue with resume={run}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Between two epochs, record that no batch of the next one is done.

        Otherwise a run limited by steps would consider the epoch unfinished.
        """
        if self._between_epochs:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the batch after which the run was interrupted."""
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        if loops:
            self._resumed_at = loops["epoch_loop.batch_progress"]["total"]["completed"]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the loops and the signal handlers."""
        self._release(trainer)

    def on_exception(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
            vars(loop).pop("on_advance_end", None)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
