"""Training, followed by a test."""

import logging

from se_lightning.lightning import LightningDataModule, LightningModule, Trainer
from se_lightning.tasks.test import test

__all__ = ["fit"]

log = logging.getLogger(__name__)


def fit(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
) -> dict[str, float]:
    """Train, from ``ckpt_path`` if given, then test the best checkpoint or the last weights.

    A module without a ``test_step``, or data without a ``test_dataloader``, are not tested.

    Returns:
        The metrics of the last epoch and of the test.
    """
    trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)
    metrics = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("train/", "val/"))  # not the learning rates
    }
    if missing := _missing(model, datamodule):
        if trainer.is_global_zero:
            log.info("%s, so the network is not tested.", missing)
        return metrics
    checkpoint = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_path", "") or None
    return metrics | test(trainer, model, datamodule, best)


def _missing(model: LightningModule, datamodule: LightningDataModule) -> str | None:
    """Return which part of a test the module or the data lack; None if there is one."""
    if type(model).test_step is LightningModule.test_step:
        return f"{type(model).__name__} has no test_step"
    if type(datamodule).test_dataloader is LightningDataModule.test_dataloader:
        return f"{type(datamodule).__name__} has no test_dataloader"
    return None


fit.trains = True  # type: ignore[attr-defined]  # build the model and the data from the config
