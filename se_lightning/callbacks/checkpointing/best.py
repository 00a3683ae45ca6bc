"""Callback that keeps the best checkpoint, also of modules that log other names."""

import logging

from se_lightning.lightning import LightningModule, ModelCheckpoint, Trainer, check_trainer

__all__ = ["BestCheckpoint"]

log = logging.getLogger(__name__)

_DEFAULT = "val/loss"  # logged by ImageClassifier
_USUAL = "val_loss"  # as in the examples of Lightning


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that also serves modules which do not log ``val/loss``.

    If the monitored metric is ``val/loss``, and a validation does not log it, ``val_loss`` is
    monitored, or without that the latest epoch is kept. Other metrics must be logged. The arguments
    are those of ModelCheckpoint.
    """

    _settled = False  # whether the first validation is over
    _replaced = False  # whether it did not log the configured metric

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer that would take it for a callback without checkpoints."""
        check_trainer(self, trainer)
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """The key of a ModelCheckpoint of the configured metric, as in older checkpoints."""
        found = self.monitor
        if self._replaced:
            self.monitor = _DEFAULT
        key = super().state_key
        self.monitor = found
        return key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the metric in the first validation, then save a checkpoint if one is due."""
        if not (self._settled or trainer.sanity_checking):
            self._settled = True
            if self.monitor == _DEFAULT:
                self._choose(trainer, type(pl_module).__name__)
        super().on_validation_end(trainer, pl_module)

    def _choose(self, trainer: Trainer, name: str) -> None:
        logged = trainer.callback_metrics
        found = next((metric for metric in (_DEFAULT, _USUAL) if metric in logged), None)
        # The same on all ranks, which save together.
        self.monitor = trainer.strategy.broadcast(found)
        self._replaced = self.monitor != _DEFAULT
        if self._replaced and trainer.is_global_zero:
            kept = f"has the lowest {found}" if found else "keeps the latest epoch"
            log.info(
                f"{name} does not log {_DEFAULT}: best.ckpt {kept}. "
                "callbacks.checkpoint.monitor=NAME monitors another metric."
            )
