"""Exponential moving average of the weights."""

import itertools
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from se_lightning.arguments import boolean, positive_integer
from se_lightning.callbacks.nonfinite.callback import NonFinite
from se_lightning.lightning import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    TrainerFn,
    WeightAveraging,
    check_trainer,
    is_lightnings,
)

__all__ = ["EMA"]

log = logging.getLogger(__name__)
_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class EMA(WeightAveraging):
    """Callback that validates, saves and tests an exponential moving average of the weights.

    The first update copies the weights. Update n after it is ``average = d * average + (1 - d) *
    weights`` with d = min(decay, (1 + n) / (10 + n)), so that the average is useful from the first
    epoch. Buffers (batch norm statistics) are also averaged; integer buffers are copied. A
    step skipped by :class:`se_lightning.NonFinite` is not an update. Until the first update, the
    raw weights are validated, whereas Lightning's callback validates the initial ones.

    A checkpoint has the average in ``state_dict`` and the raw weights in ``current_model_state``,
    so that training resumes exactly. After the fit, the network has the averaged weights.

    Args:
        decay: The decay d, in [0, 1).
        warmup: Use a smaller d at first, as above.
        every_n_steps: Number of optimizer steps between two updates.
        start_step: First step after which to update, from 0.
        device: Device of the average. None uses that of the network.

    Raises:
        ValueError: If `decay` is not in [0, 1), `warmup` is not a bool, `every_n_steps` is not a
            positive integer, or `start_step` is not a non-negative integer.
        MisconfigurationException: When the run starts, if its strategy shards the network.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[EMA(decay=0.99)], logger=False)
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = True,
        every_n_steps: int = 1,
        start_step: int = 0,
        device: str | None = None,
    ) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"`decay` (={decay!r}) must be in [0, 1).")
        boolean("warmup", warmup)
        positive_integer("every_n_steps", every_n_steps)
        if isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0:
            raise ValueError(
                f"`start_step` (={start_step!r}) must be a whole number of at least 0."
            )
        super().__init__(device=device)
        self.decay, self.warmup = decay, warmup
        self.every_n_steps, self.start_step = every_n_steps, start_step
        self._swapped = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update the average after a step."""
        since = -1 if step_idx is None else step_idx - self.start_step
        return since >= 0 and since % self.every_n_steps == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average on its device; Lightning would use the CPU before a GPU is set up."""
        check_trainer(self, trainer)
        if stage != "fit":
            return
        if is_lightnings(trainer.strategy, *_SHARDING):
            raise MisconfigurationException(
                "EMA needs the whole network on each rank, but "
                f"{type(trainer.strategy).__name__} shards it. Use trainer.strategy=ddp, or "
                "remove EMA."
            )
        self._latest_update_step, self._swapped = 0, False
        given = self._device
        self._device = given or trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        self._device = given
        assert self._average_model is not None
        # Read in every update, which must not synchronize with a GPU.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update after each optimizer step that was not skipped."""
        step = trainer.global_step - 1
        if trainer.global_step <= self._latest_update_step or not self.should_update(step):
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        skipped = [c.last_skipped for c in callbacks if isinstance(c, NonFinite)]
        if step not in skipped:
            self._update(pl_module)
        self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, module: LightningModule) -> None:
        assert self._average_model is not None
        decay = self._next_decay()
        averages, weights = [], []
        for average, weight in zip(_tensors(self._average_model), _tensors(module), strict=True):
            if decay and average.is_floating_point():
                averages.append(average)
                weights.append(weight.to(average.device))
            else:
                average.copy_(weight)
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)
        self._average_model.n_averaged += 1

    def _next_decay(self) -> float:
        updates = self._updates
        if updates == 0:
            return 0.0  # the first update copies the weights
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @property
    def _updates(self) -> int:
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the average, once there is one."""
        if self._updates and not self._swapped:
            self._agree(trainer)
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the average: other callbacks still inspect the validated network."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch back to the raw weights, before checkpoints are saved."""
        if self._swapped:
            self._swap(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Switch back to the raw weights if the exception was raised during validation."""
        self.on_validation_end(trainer, pl_module)

    def _agree(self, trainer: Trainer) -> None:
        """Copy the buffers of rank 0, which are those in checkpoints.

        The batch norm statistics of each rank, and so their averages, depend on its samples.
        """
        assert self._average_model is not None
        if trainer.world_size > 1:
            buffers = list(self._average_model.module.buffers())
            of_first = trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
            for buffer, value in zip(buffers, of_first, strict=True):
                buffer.copy_(value)

    def _swap(self, module: LightningModule) -> None:
        self._swap_models(module)
        self._swapped = not self._swapped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the raw weights: a checkpoint with both may still be saved."""
        if self._updates:
            self._agree(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average into the network."""
        if self._updates:
            self._copy_average_to_current(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._average_model = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as ``state_dict``, once there is one, and the raw weights next to it."""
        if self._average_model is None:
            return
        raw = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._updates:
            checkpoint["state_dict"] = raw

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both for training; evaluation uses the average, which is already loaded."""
        if trainer.state.fn != TrainerFn.FITTING or self._average_model is None:
            return
        if "current_model_state" not in checkpoint:
            log.info("The checkpoint has no averaged weights; the average starts with this run.")
            return
        self._average_model.module.load_state_dict(checkpoint["state_dict"])
        self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        pl_module.load_state_dict(checkpoint["current_model_state"])


def _tensors(module: nn.Module) -> itertools.chain[Tensor]:
    if isinstance(module, AveragedModel):
        module = module.module
    return itertools.chain(module.parameters(), module.buffers())
