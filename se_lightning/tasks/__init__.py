"""Tasks: plain functions that return metrics, over what their parameters name.

``trainer, model, datamodule, ckpt_path`` all four, ``datamodule`` alone, or nothing.
"""

from se_lightning.tasks.benchmark_data import benchmark_data
from se_lightning.tasks.fit import fit
from se_lightning.tasks.look import look
from se_lightning.tasks.shard import shard
from se_lightning.tasks.test import test

__all__ = ["benchmark_data", "fit", "look", "shard", "test"]
