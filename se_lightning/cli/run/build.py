"""Building the trainer, the model and the data from the config."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning import checkpoint
from se_lightning.callbacks import LastCheckpoint
from se_lightning.cli.run.checkpoint_data import data_of, expect, record_data
from se_lightning.cli.run.compiling import CompileNetwork
from se_lightning.cli.run.data_facts import fill_in
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.hardware import settle, settle_ddp
from se_lightning.cli.run.paths import NO_CHECKPOINT
from se_lightning.cli.run.recorded import (
    Record,
    is_of_a_family,
    load_weights,
    make_recorded,
    recorded,
)
from se_lightning.cli.run.resume import epochs_done
from se_lightning.cli.schema import make
from se_lightning.cli.targets import given_keys
from se_lightning.data.cores import cores
from se_lightning.models.layers.head import count_classes
from se_lightning.modules import ImageClassifier
from se_lightning.ranks import external_rank, is_further_rank

__all__ = ["build", "checkpoint_paths", "rebuild"]

log = logging.getLogger(__name__)


def build(
    cfg: DictConfig, *, trains: bool
) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    """Build trainer, model and data; without training, the last two come from ``ckpt_path``.

    Raises:
        ValueError: If a checkpoint is missing, or if settings contradict it.
        MisconfigurationException: If the machine does not have the requested devices.
    """
    _check_devices(cfg.trainer)
    if cfg.resume is not None:
        _continue(cfg)
    (path,) = checkpoint_paths(cfg, count=1)
    if trains:
        model, datamodule = _new(cfg, path)
    else:
        read = _read(path)
        settle(cfg, read, trains=False)
        model, datamodule = _rebuilt(cfg, read, str(path))
        record_data(cfg, datamodule)
    trains = trains and cfg.get("train", True)
    if not is_further_rank() and external_rank() is None:
        # Before loggers and ranks start, so that an error in the data is reported once.
        datamodule.prepare_data()
        datamodule.setup("fit" if trains else "test")
    # The whole config is logged, which contains their options.
    for part in (model, datamodule):
        part._log_hyperparams = False
    return _trainer(cfg, Record(cfg, model, datamodule) if trains else None), model, datamodule


def checkpoint_paths(cfg: DictConfig, *, count: int) -> list[str | None]:
    """Return the paths in ``ckpt_path``.

    Raises:
        ValueError: If there are not ``count`` of them, 1 or 2.
    """
    given = cfg.ckpt_path
    paths = list(given) if OmegaConf.is_list(given) else [given]
    if len(paths) != count:
        wanted = "two checkpoints, ckpt_path=[A,B]" if count == 2 else "one checkpoint"
        raise ValueError(f"`ckpt_path` (={given}): this task takes {wanted}.")
    return paths


def rebuild(cfg: DictConfig, path: str | None) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Rebuild the model and the data of a checkpoint; ``data`` overrides are applied on top.

    Raises:
        ValueError: If there is no checkpoint, or if the command line changes the model.
    """
    return _rebuilt(cfg, _read(path), str(path))


def _read(path: str | None) -> dict[str, Any]:
    """Read the checkpoint from which the model is rebuilt."""
    if path is None:
        raise ValueError(NO_CHECKPOINT)
    return checkpoint.read_checkpoint(path, any_module="model" in given_keys())


def _rebuilt(
    cfg: DictConfig, read: dict[str, Any], path: str
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    given = given_keys()
    chosen = "model" in given and not is_of_a_family(read)
    structural = [key for key in given if key.split(".")[0] == "model"]
    if structural and not chosen:
        raise ValueError(
            f"The model is rebuilt from `ckpt_path` as it was trained; leave out {structural[0]}=."
        )
    if chosen:
        trained = read.get(pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        datamodule = _data(cfg, read, count_classes(trained.get("num_classes")))
        fill_in(cfg, datamodule)
        model = make(cfg.model, "model", pl.LightningModule)
        load_weights(model, read, path)
        return model, datamodule
    if node := recorded(read, "model"):
        model = make_recorded(node, "model", pl.LightningModule, trust=cfg.trust)
        load_weights(model, read, path)
    else:
        model = checkpoint.model_from(read, path)
    return model, _data(cfg, read, getattr(model, "num_classes", None))


def _data(cfg: DictConfig, read: dict[str, Any], num_classes: int | None) -> pl.LightningDataModule:
    """Build the data of a checkpoint, with the command line on top."""
    given = given_keys()
    chosen = "data" in given or "experiment" in given
    if not chosen and (node := recorded(read, "data")):
        changes = {key[5:]: OmegaConf.select(cfg, key) for key in given if key[:5] == "data."}
        return make_recorded(node | changes, "data", pl.LightningDataModule, trust=cfg.trust)
    if chosen and num_classes is None:
        return make(cfg.data, "data", pl.LightningDataModule)
    return data_of(cfg, read, num_classes or 0)  # counted for chosen data only


def _new(cfg: DictConfig, path: str | None) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Build the model and the data of the config."""
    _check_start(cfg)
    datamodule = make(cfg.data, "data", pl.LightningDataModule)
    read = None if path is None else checkpoint.read_checkpoint(path, any_module=_is_foreign(cfg))
    if read is not None:
        expect(read, datamodule, strict=cfg.get("train", True))
    settle(cfg, read, trains=cfg.get("train", True))
    fill_in(cfg, datamodule)
    model = make(cfg.model, "model", pl.LightningModule)
    if read is not None and isinstance(model, ImageClassifier):
        checkpoint.check_fits(read, model, str(path))
    return model, datamodule


def _is_foreign(cfg: DictConfig) -> bool:
    target = get_object(cfg.model["_target_"])
    return not (isinstance(target, type) and issubclass(target, ImageClassifier))


def _trainer(cfg: DictConfig, record: Record | None) -> pl.Trainer:
    parts: dict[str, list[Any]] = {
        name: [
            make(node, f"{name}.{key}", kind) for key, node in (cfg.get(name) or {}).items() if node
        ]
        for name, kind in {"callbacks": pl.Callback, "logger": Logger}.items()
    }
    if cfg.trainer.get("enable_checkpointing", False) is None:
        # Lightning would add its own checkpoint callback if the config has none.
        cfg.trainer.enable_checkpointing = any(
            isinstance(c, Checkpoint) for c in parts["callbacks"]
        )
    if not parts["logger"]:
        parts["callbacks"] = [c for c in parts["callbacks"] if not _needs_logger(c)]
    _check_names(parts["callbacks"])
    parts["callbacks"] += [] if record is None else [record]
    parts["callbacks"] += [CompileNetwork(cfg.compile)] if cfg.get("compile") else []
    # None would be Lightning's default logger.
    parts["logger"] = parts["logger"] or False  # type: ignore[assignment]
    trainer = make(cfg.trainer, "trainer", pl.Trainer, **parts)
    settle_ddp(trainer)
    return trainer


def _needs_logger(callback: pl.Callback) -> bool:
    """Return whether Lightning refuses a callback in a trainer without loggers."""
    return isinstance(callback, LearningRateMonitor)


def _check_names(callbacks: list[pl.Callback]) -> None:
    """Refuse several checkpoints with one file name, which would overwrite each other."""
    for saving in (each for each in callbacks if isinstance(each, ModelCheckpoint)):
        several = saving.save_top_k not in (0, 1)
        if several and saving.filename and "{" not in saving.filename:
            raise ValueError(
                f"`save_top_k` (={saving.save_top_k}) would write all checkpoints to "
                f"{saving.filename}.ckpt; use checkpoint.top_k={saving.save_top_k}, which names "
                "them by epoch."
            )


def _continue(cfg: DictConfig) -> None:
    """Start from the last checkpoint of the resumed run, if there is one."""
    nodes = [node for node in (cfg.callbacks or {}).values() if node]
    saving = [node for node in nodes if _is_last_checkpoint(get_object(node._target_))]
    if not saving:
        raise ValueError(
            f"`resume` (={cfg.resume}): the run keeps no last.ckpt, since it was started without "
            "callbacks.last_checkpoint."
        )
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    last = RunFolder(run_dir).last_checkpoint
    if (folder := saving[0].get("dirpath")) is not None:
        last = Path(folder, last.name).expanduser()
    if last.is_relative_to(run_dir):  # further ranks of torchrun write elsewhere
        last = Path(cfg.resume) / last.relative_to(run_dir)
    if last.exists():
        log.info("Resuming from %s.", last)
        cfg.ckpt_path = str(last)
        if "weights" in cfg.model:
            cfg.model.weights = None
    elif epoch := epochs_done(RunFolder(cfg.resume), last.parent):
        raise ValueError(
            f"{last} is missing, though the run completed {epoch} epochs, which a new start would "
            "overwrite. Copy it back, or start a new run from other weights: model.weights=..."
        )
    else:
        log.info("%s does not exist yet; starting from scratch.", last)


def _is_last_checkpoint(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, LastCheckpoint)


def _check_start(cfg: DictConfig) -> None:
    """Refuse two starting points, and warn about frozen random weights."""
    weights = cfg.model.get("weights")
    if not (cfg.get("train", True) or cfg.ckpt_path or weights):
        log.warning("train=false tests random weights: pass ckpt_path= or model.weights=.")
    if cfg.ckpt_path is not None and weights is not None:
        raise ValueError("`ckpt_path` and `model.weights` both set the initial weights; drop one.")
    if cfg.model.get("freeze") is not None and cfg.ckpt_path is None and weights is None:
        log.warning(
            "model.freeze=%s freezes randomly initialized weights: pass model.weights= or "
            "ckpt_path=.",
            cfg.model.freeze,
        )


def _check_devices(trainer: DictConfig) -> None:
    """Refuse more GPUs than the machine has, and warn about processes that share cores."""
    devices, accelerator = trainer.get("devices"), trainer.get("accelerator", "auto")
    if not isinstance(devices, int):
        return
    gpus = torch.cuda.device_count()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus)
    if on_gpu and gpus < devices:
        raise MisconfigurationException(
            f"trainer.devices={devices} on GPUs, but this machine has {gpus}. Lower "
            "trainer.devices, or set trainer.accelerator=cpu."
        )
    on_cpu = accelerator in ("cpu", "auto") and not on_gpu
    if on_cpu and trainer.get("sync_batchnorm") and devices * trainer.get("num_nodes", 1) > 1:
        raise MisconfigurationException(
            "trainer.sync_batchnorm=true: PyTorch's synchronized batch norm works on GPUs only. "
            "Leave it out, or train on GPUs (trainer.accelerator=gpu)."
        )
    if on_cpu and devices > cores():
        log.warning("%d CPU processes share %d cores, which slows them down.", devices, cores())
