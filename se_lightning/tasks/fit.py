"""Training, followed by a test."""

from se_lightning.lightning import LightningDataModule, LightningModule, Trainer
from se_lightning.tasks.test import test

__all__ = ["fit"]


def fit(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
) -> dict[str, float]:
    """Train, from ``ckpt_path`` if given, then test the best checkpoint or the last weights.

    Returns:
        The metrics of the last epoch and of the test.
    """
    trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)
    metrics = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("train/", "val/"))  # not the learning rates
    }
    checkpoint = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_path", "") or None
    return metrics | test(trainer, model, datamodule, best)


fit.trains = True  # type: ignore[attr-defined]  # build the model and the data from the config
