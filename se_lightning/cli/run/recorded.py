"""What checkpoints record of the config: the precision, and modules and data of other people."""

from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from se_lightning import data, modules
from se_lightning.cli.schema import make
from se_lightning.cli.trust import refuse_targets
from se_lightning.modules import ImageClassifier

__all__ = [
    "Record",
    "is_of_a_family",
    "load_weights",
    "make_recorded",
    "recorded",
    "recorded_precision",
]

# The entry of a checkpoint.
_ENTRY = "se_lightning_config"


class Record(pl.Callback):
    """Adds the precision and the config of other people's parts to each checkpoint.

    Args:
        cfg: The composed config.
        model: The module built from it.
        datamodule: The data built from it.
    """

    def __init__(
        self, cfg: DictConfig, model: pl.LightningModule, datamodule: pl.LightningDataModule
    ) -> None:
        kinds = {"model": type(model), "data": type(datamodule)}
        self.names = {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in kinds.items()}
        self.nodes = {
            key: OmegaConf.to_container(cfg[key], resolve=True)
            for key, kind in kinds.items()
            if not _is_found_by_name(kind)
        }
        # Initial weights are those of the checkpoint.
        if "model" in self.nodes and isinstance(model, ImageClassifier):
            self.nodes["model"].pop("weights", None)  # type: ignore[union-attr,call-arg,arg-type]
        if (precision := cfg.trainer.get("precision")) is not None:
            self.nodes["trainer"] = {"precision": str(precision)}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the entries; an ImageClassifier then replaces the first."""
        names = {"module": self.names["model"], "datamodule": self.names["data"].rpartition(".")[2]}
        checkpoint.setdefault("se_lightning", names)
        if self.nodes:
            checkpoint[_ENTRY] = self.nodes


def _is_found_by_name(kind: type) -> bool:
    """Return whether a class can be found by its name, as checkpoints record it."""
    if issubclass(kind, pl.LightningDataModule):
        return data.find_datamodule(kind.__name__) is kind
    named = getattr(modules, kind.__name__) if kind.__name__ in modules.__all__ else None
    return named is kind and kind is not ImageClassifier


def is_of_a_family(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint alone says which network of this package it holds."""
    name = checkpoint["se_lightning"].get("module")
    known = name in modules.__all__ and name != ImageClassifier.__name__
    return known and recorded(checkpoint, "model") is None


def recorded(checkpoint: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the recorded config of the ``model`` or the ``data``; None if there is none."""
    nodes = checkpoint.get(_ENTRY)
    node = nodes.get(key) if isinstance(nodes, dict) else None
    return node if isinstance(node, dict) and isinstance(node.get("_target_"), str) else None


def recorded_precision(checkpoint: dict[str, Any]) -> str | None:
    """Return the precision of the training that wrote a checkpoint; None without a record."""
    nodes = checkpoint.get(_ENTRY)
    node = nodes.get("trainer") if isinstance(nodes, dict) else None
    precision = node.get("precision") if isinstance(node, dict) else None
    return precision if isinstance(precision, str) else None


def make_recorded(node: dict[str, Any], key: str, kind: type, *, trust: bool | None) -> Any:
    """Build the recorded ``model`` or ``data``.

    Raises:
        ValueError: If it calls what only ``trust=true`` allows, or cannot be built.
    """
    cfg = OmegaConf.create({key: node})
    if not trust:
        advice = f"If you trust it, pass trust=true, or {key}=NAME as in training."
        refuse_targets(cfg, "the checkpoint", advice)
    try:
        return make(cfg[key], key, kind)
    except ImportError as error:
        raise ValueError(
            f"The checkpoint's {key} is {node['_target_']}, which cannot be imported: {error}."
        ) from error


def load_weights(model: pl.LightningModule, checkpoint: dict[str, Any], path: str) -> None:
    """Load the weights of a checkpoint into a module of any kind.

    Raises:
        ValueError: If they do not fit.
    """
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit {type(model).__name__}: {why}") from error
