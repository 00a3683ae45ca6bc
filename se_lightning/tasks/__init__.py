"""Tasks: plain functions over a trainer, a model and a datamodule, that return metrics."""

from se_lightning.tasks.fit import fit
from se_lightning.tasks.test import test

__all__ = ["fit", "test"]
