"""A run: instantiate what the config says, do the task, write result.json."""

import inspect
import logging
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from se_lightning import checkpoint
from se_lightning.cli import console
from se_lightning.cli.run import out_of_memory as memory
from se_lightning.cli.run import rank_failures as failures
from se_lightning.cli.run import report as account
from se_lightning.cli.run.result import identity, task_overrides, write_result
from se_lightning.cli.schema import check_values, make
from se_lightning.data.base import cores
from se_lightning.loggers import finish_wandb
from se_lightning.ranks import external_rank, is_further_rank

__all__ = ["train"]

log = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")


def train(cfg: DictConfig) -> float | None:
    """Run the task of a composed config, and say in the run directory how it went.

    Returns:
        The best checkpoint's score, which a sweeper can optimise; None without one.
    """
    console.quiet()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    start = time.time()
    try:
        check_values(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        if cfg.resume is not None and not _is_fit(cfg):
            raise ValueError(f"`resume` (={cfg.resume}): that was no training; do it once more.")
        task = make(cfg.task, "task", Callable)  # type: ignore[arg-type]
        result = _way(task)(cfg, task)
        failures.part()
    except BaseException:
        finish_wandb(failed=True)
        raise
    result |= {"status": "completed", **identity()}
    result["wall_time_s"] = round(time.time() - start, 2)
    result["versions"] = {package: version(package) for package in _PACKAGES}
    result["versions"]["python"] = platform.python_version()
    if getattr(rank_zero_only, "rank", 0) == 0:  # as Lightning's process group has set it
        write_result(run_dir, result)
        account.report(result, run_dir)
    finish_wandb(failed=False)
    return result["score"]


def _way(task: Callable[..., Any]) -> Callable[[DictConfig, Callable[..., Any]], dict[str, Any]]:
    """Tell how a task is done: it says by its parameters what it works on."""
    wanted = inspect.signature(task).parameters
    if "trainer" in wanted:
        return _in_trainer
    return _on_networks if {"model", "models"} & wanted.keys() else _on_data


def _in_trainer(cfg: DictConfig, task: Callable[..., dict[str, float]]) -> dict[str, Any]:
    trainer, model, datamodule = build(cfg)
    result = account.describe(cfg, trainer, model, datamodule, fits=_is_fit(cfg))
    account.greet(result)
    # What is not a training has its weights already.
    ckpt_path = cfg.ckpt_path if _is_fit(cfg) else None
    with memory.explained(cfg, trainer, datamodule):
        result["metrics"] = task(trainer, model, datamodule, ckpt_path)
    result |= {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    return result | account.products(trainer)


def _alone(cfg: DictConfig) -> dict[str, Any]:
    """Begin the result of a task that one process does, without a trainer."""
    result = {"task": HydraConfig.get().runtime.choices["task"], "seed": cfg.seed}
    return result | {"world_size": 1, "score": None, "picture": None, "metrics": {}}


def _on_networks(cfg: DictConfig, task: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """Do a task that looks into a trained network, or into several."""
    result = _alone(cfg)
    if is_further_rank():
        return result
    if unused := [
        key for key in _given() if key.startswith("trainer.") and key != "trainer.accelerator"
    ]:
        raise ValueError(
            f"task={result['task']} has no trainer; leave out {unused[0]}=. It runs in one "
            "process, on the GPU if there is one (trainer.accelerator=cpu keeps it off)."
        )
    wanted = inspect.signature(task).parameters
    several = "models" in wanted
    paths = _checkpoints(cfg, several=several)
    rebuilt = [_rebuild(cfg, path) for path in paths]
    datamodule = rebuilt[0][1]
    datamodule.prepare_data()
    for stage in ("validate", "test"):  # without the training files, which need not be there
        datamodule.setup(stage)
    device = _device(cfg.trainer.accelerator)
    models = [model.to(device).eval() for model, _ in rebuilt]
    given: dict[str, Any] = {"datamodule": datamodule}
    given |= {"models": models, "names": paths} if several else {"model": models[0]}
    if "ckpt_path" in wanted:
        given["ckpt_path"] = paths[0]
    result |= {"model": type(models[0]).__name__, "data": type(datamodule).__name__}
    result |= {"metrics": task(**given)}
    return result


def _checkpoints(cfg: DictConfig, *, several: bool) -> list[str | None]:
    """Return the paths in ``ckpt_path``: two of a task that compares, else one."""
    given = cfg.ckpt_path
    paths = list(given) if OmegaConf.is_list(given) else [given]
    if several and len(paths) != 2:
        raise ValueError(f"`ckpt_path` (={given}) must be two checkpoints: ckpt_path=[A,B].")
    if not several and len(paths) != 1:
        raise ValueError(f"`ckpt_path` (={given}): this task takes one checkpoint.")
    return paths


def _device(accelerator: str) -> torch.device:
    """Return where a task without a trainer works; Apple's GPUs lack the float64 of statistics."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def _on_data(cfg: DictConfig, task: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """Do a task that needs no network: on the data, or on nothing of the config's."""
    result = _alone(cfg) | {"data": HydraConfig.get().runtime.choices["data"]}
    if is_further_rank():
        return result
    given = []
    if "datamodule" in inspect.signature(task).parameters:
        datamodule = make(cfg.data, "data", pl.LightningDataModule)
        datamodule.prepare_data()
        datamodule.setup()
        given.append(datamodule)
    result["metrics"] = task(*given)
    return result


def build(cfg: DictConfig) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    """Make trainer, model and datamodule; all but a training rebuilds the last two from ckpt_path.

    Raises:
        ValueError: if a checkpoint is needed and not given, or arguments contradict it.
    """
    _check_devices(cfg.trainer)
    if cfg.resume is not None:
        _go_on(cfg)
    (path,) = _checkpoints(cfg, several=False)
    if _is_fit(cfg):
        _check_beginning(cfg)
        datamodule = make(cfg.data, "data", pl.LightningDataModule)
        for key in ("num_classes", "in_channels", "image_size"):
            if key in cfg.model and cfg.model[key] is None:
                cfg.model[key] = getattr(datamodule, key)
        model = make(cfg.model, "model", pl.LightningModule)
        if path is not None:
            checkpoint.check_fits(checkpoint.read_checkpoint(path), model, path)
    else:
        model, datamodule = _rebuild(cfg, path)
    if not is_further_rank() and external_rank() is None:
        # Before loggers and ranks are started: what is wrong with the data is said once.
        datamodule.prepare_data()
        datamodule.setup("fit" if _is_fit(cfg) else "test")
    parts = {
        name: [
            make(node, f"{name}.{key}", kind) for key, node in (cfg.get(name) or {}).items() if node
        ]
        for name, kind in {"callbacks": pl.Callback, "logger": Logger}.items()
    }
    if cfg.trainer.enable_checkpointing is None:
        # Lightning would add a checkpoint of its own where the config has none.
        cfg.trainer.enable_checkpointing = any(
            isinstance(c, Checkpoint) for c in parts["callbacks"]
        )
    _check_names(parts["callbacks"])
    # No logger is False: None is Lightning's own choice of one.
    trainer = make(
        cfg.trainer,
        "trainer",
        pl.Trainer,
        callbacks=parts["callbacks"],
        logger=parts["logger"] or False,
    )
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return trainer, model, datamodule


def _check_names(callbacks: list[pl.Callback]) -> None:
    """Refuse several checkpoints of one name: the third best would take the place of the best."""
    for saving in (each for each in callbacks if isinstance(each, ModelCheckpoint)):
        several = saving.save_top_k not in (0, 1)
        if several and saving.filename and "{" not in saving.filename:
            raise ValueError(
                f"`save_top_k` (={saving.save_top_k}) would write all of them into "
                f"{saving.filename}.ckpt: checkpoint.top_k={saving.save_top_k} keeps each apart."
            )


def _go_on(cfg: DictConfig) -> None:
    """Begin with the last checkpoint of the run that is resumed, if it came so far."""
    nodes = [node for node in (cfg.callbacks or {}).values() if node]
    saving = [node for node in nodes if str(node.get("_target_")).endswith(".LastCheckpoint")]
    if not saving:
        raise ValueError(
            f"`resume` (={cfg.resume}): the run keeps no last.ckpt; it was begun without "
            "callbacks.last_checkpoint."
        )
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    folder = Path(saving[0].dirpath or run_dir / "checkpoints")
    if folder.is_relative_to(run_dir):  # which further ranks of torchrun's have elsewhere
        folder = Path(cfg.resume) / folder.relative_to(run_dir)
    last = folder / "last.ckpt"
    if last.exists():
        log.info("Going on from %s.", last)
        cfg.ckpt_path, cfg.model.weights = str(last), None
    else:
        log.info("There is no %s yet: the run begins anew.", last)


def _is_fit(cfg: DictConfig) -> bool:
    return str(cfg.task["_target_"]).endswith(".fit")


def _check_beginning(cfg: DictConfig) -> None:
    """Say what two settings together would do silently."""
    weights = cfg.model.get("weights")
    if cfg.ckpt_path is not None and weights is not None:
        raise ValueError(
            "`ckpt_path` and `model.weights` both say what to begin with; leave one out."
        )
    if cfg.model.get("freeze") is not None and cfg.ckpt_path is None and weights is None:
        log.warning(
            "model.freeze=%s holds weights that are random: give model.weights= or ckpt_path=.",
            cfg.model.freeze,
        )


def _rebuild(
    cfg: DictConfig, path: str | None
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Take model and data from the checkpoint; ``data`` and ``data.*`` overrides go on top."""
    if path is None:
        raise ValueError("This task needs a checkpoint: ckpt_path=RUN_DIR/checkpoints/best.ckpt.")
    given = _given()
    structural = [key for key in given if key.split(".")[0] == "model"]
    if structural:
        raise ValueError(
            f"The model is rebuilt from `ckpt_path` as it was trained; leave out {structural[0]}=."
        )
    read = checkpoint.read_checkpoint(path)
    model = checkpoint.model_from(read, path)
    if "data" in given or "experiment" in given:
        return model, make(cfg.data, "data", pl.LightningDataModule)
    changes = {key[5:]: OmegaConf.select(cfg, key) for key in given if key.startswith("data.")}
    return model, checkpoint.datamodule_from(read, **changes)


def _given() -> list[str]:
    """Return the keys that the command line sets."""
    return [override.split("=")[0].lstrip("+~") for override in task_overrides()]


def _check_devices(trainer: DictConfig) -> None:
    """Say what Lightning does not: too many GPUs, or processes that share cores."""
    devices, accelerator = trainer.devices, trainer.accelerator
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
    if on_cpu and trainer.sync_batchnorm and devices * trainer.num_nodes > 1:
        raise MisconfigurationException(
            "trainer.sync_batchnorm=true: PyTorch's synchronized batch norm works on GPUs only. "
            "Leave it out, or train on GPUs (trainer.accelerator=gpu)."
        )
    if on_cpu and devices > cores():
        log.warning("%d CPU processes share %d cores; each gets slower.", devices, cores())
