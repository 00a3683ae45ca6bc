"""Paths in a config that may be relative to the folder where the command was given."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

__all__ = ["settle_paths"]

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
