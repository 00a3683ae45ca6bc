"""Training, followed by a test."""

import logging

from se_lightning.lightning import LightningDataModule, LightningModule, Trainer
from se_lightning.tasks.test import test as run_test

__all__ = ["fit"]

log = logging.getLogger(__name__)


def fit(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
    *,
    train: bool = True,
    test: bool = True,
) -> dict[str, float]:
    """Train, from ``ckpt_path`` if given, then test the best checkpoint or the last weights.

    After a training, a module without a ``test_step``, or data without a ``test_dataloader``, are
    not tested.

    Args:
        trainer: The trainer.
        model: The model.
        datamodule: The data.
        ckpt_path: A checkpoint to continue from; without ``train``, the one to test.
        train: Whether to train.
        test: Whether to test.

    Returns:
        The metrics of the last epoch and of the test.

    Raises:
        ValueError: If there is neither a training nor a test.
    """
    if not (train or test):
        raise ValueError("`train` and `test` are both false: there is nothing to do.")
    metrics = {}
    if train:
        trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/"))  # not the learning rates
        }
        ckpt_path = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    missing = _missing(model, datamodule) if train and test else None
    if missing and trainer.is_global_zero:
        log.info("%s, so the network is not tested.", missing)
    if test and not missing:
        metrics |= run_test(trainer, model, datamodule, ckpt_path)
    return metrics


def _missing(model: LightningModule, datamodule: LightningDataModule) -> str | None:
    """Return which part of a test the module or the data lack; None if there is one."""
    if type(model).test_step is LightningModule.test_step:
        return f"{type(model).__name__} has no test_step"
    if type(datamodule).test_dataloader is LightningDataModule.test_dataloader:
        return f"{type(datamodule).__name__} has no test_dataloader"
    return None


fit.trains = True  # type: ignore[attr-defined]  # build the model and the data from the config
