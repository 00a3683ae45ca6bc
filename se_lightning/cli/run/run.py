"""A run: build the objects of the config, call the task, write ``result.json``."""

import inspect
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from se_lightning.cli import console
from se_lightning.cli.run import compiling, out_of_memory, rank_failures, report
from se_lightning.cli.run.build import build, checkpoint_paths, rebuild
from se_lightning.cli.run.checkpoint_data import tell_differences
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.result import RunResult, identity
from se_lightning.cli.schema import check_values, make
from se_lightning.cli.targets import given_keys
from se_lightning.data.base import ImageDataModule
from se_lightning.loggers import finish_wandb
from se_lightning.ranks import is_further_rank

__all__ = ["run"]

Task = Callable[..., dict[str, float]]
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")


def run(cfg: DictConfig) -> float | None:
    """Run the task of a composed config, and write its result to the run folder.

    Returns:
        The best checkpoint's score, which a sweeper can optimize; None without one.
    """
    console.quiet()
    folder = RunFolder(HydraConfig.get().runtime.output_dir)
    start = time.time()
    try:
        check_values(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        task = make(cfg.task, "task", Callable)  # type: ignore[arg-type]
        if not _trains(task):
            _refuse_training_options(cfg)
        result = _caller(cfg, task)(cfg, task)
        rank_failures.part()
    except BaseException:
        finish_wandb(failed=True)
        raise
    result["status"] = "completed"
    result["tags"] = list(cfg.get("tags") or [])
    result.update(identity())
    result["wall_time_s"] = round(time.time() - start, 2)
    result["versions"] = {package: version(package) for package in _PACKAGES}
    result["versions"]["python"] = platform.python_version()
    if getattr(rank_zero_only, "rank", 0) == 0:  # set by Lightning's process group
        folder.write_result(result)
        report.last_lines(result, folder)
    finish_wandb(failed=False)
    return result["score"]


def _trains(task: Task) -> bool:
    """Return whether a task trains, by the attribute that :func:`se_lightning.tasks.fit` sets."""
    return getattr(task.func if isinstance(task, partial) else task, "trains", False)


def _refuse_training_options(cfg: DictConfig) -> None:
    """Refuse the options of training runs with another task."""
    if cfg.resume is not None:
        raise ValueError(f"`resume` (={cfg.resume}) continues training runs only; rerun this task.")
    for name in ("train", "test"):
        if not cfg.get(name, True):
            raise ValueError(f"`{name}=false` is an option of task=fit; leave it out.")


def _caller(cfg: DictConfig, task: Task) -> Callable[[DictConfig, Task], RunResult]:
    """Return the function that calls a task, chosen by the names of its parameters."""
    wanted = inspect.signature(task).parameters
    if "trainer" in wanted:
        return _call_with_trainer
    if cfg.get("compile") is not None:
        raise ValueError("`compile` is an option of task=fit and task=test; leave it out.")
    if "build" in wanted:
        return _call_on_config
    return _call_on_networks if {"model", "models"} & wanted.keys() else _call_on_data


def _call_with_trainer(cfg: DictConfig, task: Task) -> RunResult:
    trains = _trains(task)
    trainer, model, datamodule = build(cfg, trains=trains)
    result = report.describe(cfg, trainer, model, datamodule, trains=trains)
    report.start_loggers(cfg, trainer, result)
    report.first_line(result)
    # Other tasks have their weights already.
    ckpt_path = cfg.ckpt_path if trains else None
    with compiling.explained(cfg), out_of_memory.explained(cfg, trainer, datamodule):
        result["metrics"] = task(trainer, model, datamodule, ckpt_path)
    result["epochs"], result["steps"] = trainer.current_epoch, trainer.global_step
    result.update(report.products(trainer, RunFolder(HydraConfig.get().runtime.output_dir)))
    return result


def _without_trainer(cfg: DictConfig) -> RunResult:
    """Return the common entries of the results of tasks without a trainer."""
    return {
        "task": HydraConfig.get().runtime.choices["task"],
        "seed": cfg.seed,
        "world_size": 1,
        "score": None,
        "picture": None,
        "metrics": {},
    }


def _call_on_networks(cfg: DictConfig, task: Task) -> RunResult:
    """Call a task that inspects one trained network, or compares two."""
    result = _without_trainer(cfg)
    if is_further_rank():
        return result
    if unused := [
        key for key in given_keys() if key.startswith("trainer.") and key != "trainer.accelerator"
    ]:
        raise ValueError(
            f"task={result['task']} has no trainer; leave out {unused[0]}=. It runs in one "
            "process, on the GPU if there is one (trainer.accelerator=cpu uses the CPU)."
        )
    wanted = inspect.signature(task).parameters
    several = "models" in wanted
    paths = checkpoint_paths(cfg, count=2 if several else 1)
    rebuilt = [rebuild(cfg, path) for path in paths]
    datamodule = rebuilt[0][1]
    for _, other in rebuilt[1:]:
        if isinstance(other, ImageDataModule):
            tell_differences(datamodule, other)
    datamodule.prepare_data()
    for stage in ("validate", "test"):  # the training files may be missing
        datamodule.setup(stage)
    device = _device(cfg.trainer.accelerator)
    models = [model.to(device).eval() for model, _ in rebuilt]
    given: dict[str, Any] = {"datamodule": datamodule}
    given |= {"models": models, "names": paths} if several else {"model": models[0]}
    if "ckpt_path" in wanted:
        given["ckpt_path"] = paths[0]
    result["model"], result["data"] = type(models[0]).__name__, type(datamodule).__name__
    result["metrics"] = task(**given)
    return result


def _call_on_config(cfg: DictConfig, task: Task) -> RunResult:
    """Call a task that builds untrained networks from the config."""
    result = _without_trainer(cfg)
    if is_further_rank():
        return result
    node = {key: value for key, value in cfg.model.items() if value is not None}

    def build(**changes: Any) -> pl.LightningModule:
        return make(OmegaConf.create(node | changes), "model", pl.LightningModule).backbone

    name = HydraConfig.get().runtime.choices["model"]
    result["metrics"] = task(build, name=name, device=_device(cfg.trainer.accelerator))
    return result


def _device(accelerator: str) -> torch.device:
    """Return the device of a task without a trainer; Apple's GPUs lack float64."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def _call_on_data(cfg: DictConfig, task: Task) -> RunResult:
    """Call a task that needs no network: with the data, or without arguments."""
    result = _without_trainer(cfg)
    result["data"] = HydraConfig.get().runtime.choices["data"]
    if is_further_rank():
        return result
    given = []
    if "datamodule" in inspect.signature(task).parameters:
        if cfg.ckpt_path is None:
            datamodule = make(cfg.data, "data", pl.LightningDataModule)
        else:
            _, datamodule = rebuild(cfg, *checkpoint_paths(cfg, count=1))
            result["data"] = type(datamodule).__name__
        datamodule.prepare_data()
        datamodule.setup()
        given.append(datamodule)
    result["metrics"] = task(*given)
    return result
