"""Tasks: plain functions that return metrics.

The names of a task's parameters select its arguments: ``trainer, model, datamodule, ckpt_path``;
``model, datamodule`` of a checkpoint; ``models, names, datamodule`` of several checkpoints;
``datamodule`` alone; ``build, name, device`` for networks of the config; or nothing.
"""

from se_lightning.tasks.analyze import analyze
from se_lightning.tasks.benchmark import benchmark
from se_lightning.tasks.benchmark_data import benchmark_data
from se_lightning.tasks.benchmark_excitation import benchmark_excitation
from se_lightning.tasks.compare import compare
from se_lightning.tasks.export import export
from se_lightning.tasks.fit import fit
from se_lightning.tasks.fold import fold
from se_lightning.tasks.look import look
from se_lightning.tasks.shard import shard
from se_lightning.tasks.test import test
from se_lightning.tasks.what_if import what_if

__all__ = [
    "analyze",
    "benchmark",
    "benchmark_data",
    "benchmark_excitation",
    "compare",
    "export",
    "fit",
    "fold",
    "look",
    "shard",
    "test",
    "what_if",
]
