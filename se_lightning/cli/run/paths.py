"""Paths in a config: relative to the folder where the command was given, and of files that exist.

Nothing here imports torch, so that a missing checkpoint is reported at once.
"""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

__all__ = ["NO_CHECKPOINT", "refuse_missing_checkpoint", "settle_paths"]

NO_CHECKPOINT = "This task needs a checkpoint: ckpt_path=RUN_DIR/checkpoints/best.ckpt."
# Tasks of this package that read a checkpoint; others ask for it themselves.
_OF_CHECKPOINTS = ("analyze", "compare", "export", "fold", "test", "what_if")

_READ = ("ckpt_path", "data.root", "model.weights")
_WRITTEN = ("task.folder", "task.output")


def settle_paths(cfg: DictConfig) -> None:
    """Expand ``~`` in the paths of a config, and find what is read where the command was given.

    With ``hydra.job.chdir=true``, this process works in the folder of the run instead.
    """
    for key in (*_READ, *_WRITTEN):
        value = OmegaConf.select(cfg, key)
        settled: Any = None
        if isinstance(value, str):
            settled = _settled(key, value)
        elif OmegaConf.is_list(value):
            settled = [_settled(key, each) if isinstance(each, str) else each for each in value]
        if settled is not None and settled != value:
            OmegaConf.update(cfg, key, settled)


def _settled(key: str, value: str) -> str:
    path = Path(value).expanduser() if value.startswith("~") else Path(value)
    given = Path(HydraConfig.get().runtime.cwd)
    if key in _READ and value and given != Path.cwd():
        there = given / path
        # Weights may also have a name that is no path.
        if key != "model.weights" or os.path.lexists(there):
            return str(there)
    return str(path) if value.startswith("~") else value


def refuse_missing_checkpoint(cfg: DictConfig) -> None:
    """Refuse a task without the checkpoint that it needs, and a checkpoint that is not a file.

    Raises:
        ValueError: If the task needs a checkpoint.
        FileNotFoundError: If there is no such file.
    """
    if cfg.get("resume") is not None:
        return  # it reads the last checkpoint of the run
    given = cfg.get("ckpt_path")
    target = OmegaConf.select(cfg, "task._target_")
    if given is None and target in {f"se_lightning.tasks.{name}" for name in _OF_CHECKPOINTS}:
        raise ValueError(NO_CHECKPOINT)
    for path in given if OmegaConf.is_list(given) else [given]:
        if isinstance(path, str) and not Path(path).is_file():
            raise FileNotFoundError(
                f"`ckpt_path` (={path}) is not a file. Runs save RUN_DIR/checkpoints/best.ckpt and "
                "last.ckpt."
            )
