"""Callback that keeps the k best checkpoints."""

from se_lightning.lightning import LightningModule, ModelCheckpoint, Trainer, check_trainer

__all__ = ["TopK"]


class TopK(ModelCheckpoint):
    """A second ModelCheckpoint, with one file per epoch.

    Lightning identifies the states of callbacks by class and monitored metric, so it cannot save
    two ModelCheckpoints with the same metric.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer that would take it for a callback without checkpoints."""
        check_trainer(self, trainer)
        super().setup(trainer, pl_module, stage)
