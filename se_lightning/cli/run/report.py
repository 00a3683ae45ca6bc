"""What a run tells of itself: in its first line, in its last lines, and in result.json."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from se_lightning.excitation import find_gates
from se_lightning.models import hidden_widths

__all__ = ["describe", "greet", "products", "report"]

log = logging.getLogger(__name__)


def describe(
    cfg: DictConfig,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    *,
    fits: bool,
) -> dict[str, Any]:
    """Say what is run: names, sizes, and what the ratio did to each gate.

    Args:
        cfg: of the run.
        trainer: of the run.
        model: of the run.
        datamodule: of the run.
        fits: whether model and data are those of the config, and not of a checkpoint.
    """
    choices = HydraConfig.get().runtime.choices
    backbone = getattr(model, "backbone", model)
    return {
        "task": choices["task"],
        "model": _name(cfg) if fits else type(model).__name__,
        "data": choices["data"] if fits else type(datamodule).__name__,
        "seed": cfg.seed,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "gates": len(find_gates(backbone)),
        "hidden_widths": hidden_widths(backbone),
        "world_size": trainer.world_size,
        "batch_size": getattr(datamodule, "batch_size", None),  # memory may have decided
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def _name(cfg: DictConfig) -> str:
    """Say which network it is: the option, and of a library's also the name."""
    choice = HydraConfig.get().runtime.choices["model"]
    return " ".join(filter(None, [choice, cfg.model.get("name")]))


def products(trainer: pl.Trainer) -> dict[str, Any]:
    """Say what the run has made: its best checkpoint, that one's score, and a picture."""
    pictures = [getattr(callback, "picture", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    best = trainer.checkpoint_callback
    score = getattr(best, "best_model_score", None)
    return {
        "checkpoint": getattr(best, "best_model_path", "") or None,
        "score": None if score is None else float(score),
        "picture": next((str(path) for path in pictures if path), None),
    }


@rank_zero_only
def greet(result: dict[str, Any]) -> None:
    """Print the first line."""
    widths = list(dict.fromkeys(result["hidden_widths"].values()))
    gates = f"{result['gates']} gates" + (f", hidden widths {widths}" if widths else "")
    what = f"{result['model']}: {result['parameters']:,} parameters, {gates}"
    log.info(what if result["world_size"] == 1 else f"{what}; {result['world_size']} processes")


def report(result: dict[str, Any], run_dir: Path) -> None:
    """Print the last lines."""
    accuracy = result["metrics"].get("test/acc1")
    lines = {
        "test accuracy": None if accuracy is None else f"{100 * accuracy:.2f} %",
        "run directory": str(run_dir),
        "picture": result["picture"],
    }
    log.info("%s", "\n".join(f"{name:14} {value}" for name, value in lines.items() if value))
