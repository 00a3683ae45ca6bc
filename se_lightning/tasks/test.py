"""Test of a trained network."""

from se_lightning.lightning import LightningDataModule, LightningModule, Trainer

__all__ = ["test"]


def test(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
) -> dict[str, float]:
    """Test the model, with the weights of ``ckpt_path`` if given.

    Returns:
        ``test/loss``, ``test/acc1`` and, with more than 5 classes, ``test/acc5``.
    """
    results = trainer.test(model, datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
    return {name: float(value) for result in results for name, value in result.items()}
