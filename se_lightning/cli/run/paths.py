"""Paths of a command: not empty, relative to where it was given, and of files that exist.

Nothing here imports torch, so that a missing checkpoint is reported at once.
"""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from se_lightning.cli.command import Command, key_of, value_of

__all__ = ["NO_CHECKPOINT", "refuse_empty", "refuse_missing_checkpoint", "settle_paths"]

NO_CHECKPOINT = "This task needs a checkpoint: ckpt_path=RUN_DIR/checkpoints/best.ckpt."
# Tasks of this package that read a checkpoint; others ask for it themselves.
_OF_CHECKPOINTS = ("analyze", "compare", "export", "fold", "test", "what_if")

_READ = ("ckpt_path", "data.root", "model.weights")
_WRITTEN = ("task.folder", "task.output")
_FOLDERS = ("resume", "jobs.resume", "output_dir", "hydra.run.dir", "hydra.sweep.dir")


def refuse_empty(command: Command) -> None:
    """Refuse an empty value, as an unset variable of a shell leaves it.

    Raises:
        ValueError: If a value is missing, or a path is empty, which would be the current folder.
    """
    for override in command.overrides:
        key = key_of(override)
        is_path = key in (*_READ, *_WRITTEN, *_FOLDERS)
        if "=" in override and not value_of(override) and (is_path or override[-1] == "="):
            raise ValueError(
                f"`{override}` has no value: is a variable of your shell unset? Leave it out, or "
                f"write {key}=null for none."
            )


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
