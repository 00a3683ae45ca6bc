"""Training, followed by a test."""

from se_lightning.lightning import LightningDataModule, LightningModule, Trainer
from se_lightning.tasks.test import test as run_test

__all__ = ["fit"]


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
    if test:
        metrics |= run_test(trainer, model, datamodule, ckpt_path)
    return metrics


fit.trains = True  # type: ignore[attr-defined]  # build the model and the data from the config
