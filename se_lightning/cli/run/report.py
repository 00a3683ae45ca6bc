"""Console and result summary of a run."""

import logging
import os
import shlex
from typing import Any, cast

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from se_lightning.cli.command import Command, key_of, value_of
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.result import RunResult
from se_lightning.excitation import find_gates
from se_lightning.loggers import GracefulWandbLogger
from se_lightning.models import hidden_widths
from se_lightning.ranks import CHILD

__all__ = ["describe", "first_line", "last_lines", "products", "run_name", "start_loggers"]

log = logging.getLogger(__name__)
# What people usually look at after a task.
_NEXT = {"fit": "analyze", "test": "analyze"}

_FACTS = ("task", "model", "data", "parameters", "gates", "hidden_widths", "world_size")
_EXPERIMENT = (
    "experiment", "model", "data", "optimizer", "lr_scheduler", "callbacks", "trainer", "seed"
)  # fmt: skip
_PLACES = (
    "root", "download", "num_workers", "accelerator", "devices", "num_nodes", "strategy",
    "profiler", "log_every_n_steps", "benchmark",
)  # fmt: skip


def describe(
    cfg: DictConfig,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    *,
    trains: bool,
) -> RunResult:
    """Return the names and sizes of the model and the data, and the hidden width of each gate.

    With ``trains``, the model and the data are those of the config, not of a checkpoint.
    """
    choices = HydraConfig.get().runtime.choices
    backbone = getattr(model, "backbone", model)
    # torchvision and timm have many networks under one option.
    option = " ".join(filter(None, [choices["model"], cfg.model.get("name")]))
    return {
        "task": choices["task"],
        "model": option if trains else type(model).__name__,
        "data": choices["data"] if trains else type(datamodule).__name__,
        "seed": cfg.seed,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "gates": len(find_gates(backbone)),
        "hidden_widths": hidden_widths(model),
        "world_size": trainer.world_size,
        # Not the config's: the datamodule may come from a checkpoint.
        "batch_size": getattr(datamodule, "batch_size", None),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def start_loggers(cfg: DictConfig, trainer: pl.Trainer, result: RunResult) -> None:
    """Name the W&B run, and log the config and the sizes of the network, once."""
    facts = {key: result[key] for key in _FACTS}  # type: ignore[literal-required]
    options = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        if isinstance(logger, GracefulWandbLogger):
            logger.default_name = run_name(result, Command.recorded(HydraConfig.get()))
        logger.log_hyperparams({**options, "run": facts})  # type: ignore[dict-item]


def run_name(result: RunResult, command: Command) -> str:
    """Return the network, the data, and the options in which this run differs from the default.

    Options that say where or how fast it runs are left out.
    """
    differences = {}
    for override in command.task_overrides:
        group, _, option = key_of(override).partition(".")
        if group not in _EXPERIMENT or option.split("_")[0] == "enable" or option in _PLACES:
            continue
        name, value = option or group, value_of(override)
        if option or group == "seed":
            differences[name] = f"{name}={value}"
        elif group not in ("model", "data"):
            differences[name] = value
    return " ".join([result["model"], result["data"], *differences.values()])


def products(trainer: pl.Trainer, folder: RunFolder) -> RunResult:
    """Return the best checkpoint, its score, and the excitation picture.

    The score is also written to the summary of each W&B run, as in ``best/val/loss``.
    """
    callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
    pictures = [getattr(callback, "picture", None) for callback in callbacks]
    best = trainer.checkpoint_callback
    score = getattr(best, "best_model_score", None)
    path = getattr(best, "best_model_path", "")
    if score is not None:
        _summarize(trainer, {f"best/{getattr(best, 'monitor', 'score')}": float(score)})
    return {
        "checkpoint": folder.relative(path) if path else None,
        "score": None if score is None else float(score),
        "picture": next((folder.relative(path) for path in pictures if path), None),
    }


@rank_zero_only
def _summarize(trainer: pl.Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(values)


@rank_zero_only
def first_line(result: RunResult) -> None:
    """Print the size of the network and its gates."""
    widths = list(dict.fromkeys(result["hidden_widths"].values()))
    gates = f"{result['gates']} gates" + (f", hidden widths {widths}" if widths else "")
    what = f"{result['model']}: {result['parameters']:,} parameters, {gates}"
    log.info(what if result["world_size"] == 1 else f"{what}; {result['world_size']} processes")


def last_lines(result: RunResult, folder: RunFolder) -> None:
    """Print the accuracy and where the files are."""
    accuracy = result["metrics"].get("test/acc1")
    lines = {
        "test accuracy": None if accuracy is None else f"{100 * accuracy:.2f} %",
        "run directory": str(folder.path),
        "picture": result["picture"] and folder.path / result["picture"],
        "next": _next(result, folder),
    }
    log.info("%s", "\n".join(f"{name:14} {value}" for name, value in lines.items() if value))


def _next(result: RunResult, folder: RunFolder) -> str | None:
    """Return a command that goes on from here; none for the jobs of a multirun."""
    task = _NEXT.get(result.get("task", ""))
    checkpoint = result.get("checkpoint")
    if task is None or checkpoint is None or CHILD in os.environ:
        return None
    path = os.path.relpath(folder.path / checkpoint, HydraConfig.get().runtime.cwd)
    return f"python -m se_lightning task={task} ckpt_path={shlex.quote(path)}"
