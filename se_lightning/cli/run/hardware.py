"""Settings that suit the devices of a run: precision, cuDNN, TF32, fused optimizers, DDP's buffers.

Each has an ordinary key of the config, and a value that is set there is kept.
"""

import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import (
    Accelerator,
    CUDAAccelerator,
    MPSAccelerator,
    XLAAccelerator,
)
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import Precision
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning.cli.run.recorded import recorded_precision

__all__ = ["settle", "settle_ddp", "suited_precision"]

log = logging.getLogger(__name__)

_AUTO = ("auto", "${se_lightning.precision:auto}")  # as typed, and as in conf/trainer/default.yaml
_FULL, _MIXED = "32-true", "bf16-mixed"
_FULL_NAMES = ("None", "32", "32-true", "64", "64-true")  # in Lightning; None means 32-true
_AMPERE = (8, 0)  # the first compute capability with bfloat16
# What Lightning takes for accelerator=auto, in its order, if there is one.
_ACCELERATORS: dict[str, type[Accelerator]] = {
    "tpu": XLAAccelerator,
    "mps": MPSAccelerator,
    "cuda": CUDAAccelerator,
}
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # on CUDA


def settle(cfg: DictConfig, checkpoint: dict[str, Any] | None, *, trains: bool) -> None:
    """Set what the config leaves open, before the model and the trainer are built.

    Args:
        cfg: The composed config, which is changed.
        checkpoint: The checkpoint to continue from or to evaluate.
        trains: Whether the run trains.
    """
    given: Any = OmegaConf.to_container(cfg.trainer, resolve=False)
    if given.get("precision") in _AUTO:
        cfg.trainer.precision, reason = _precision(cfg.trainer, checkpoint, trains=trains)
        if cfg.trainer.precision is not None:
            log.info("%-14s %s: %s", "precision", cfg.trainer.precision, reason)
    if _device_type(cfg.trainer) == "cuda":
        _suit_gpus(cfg)
        if trains:
            _fuse(cfg)


def _precision(
    trainer: Mapping[str, Any], checkpoint: dict[str, Any] | None, *, trains: bool
) -> tuple[str | None, str]:
    """Return the precision of a run, and the reason.

    A training continues in the precision in which it began. An evaluation takes the precision of
    the training if it suits this machine, so that it repeats the accuracy.
    """
    precision, reason = suited_precision(trainer)
    if precision is None or checkpoint is None:
        return precision, reason
    before = recorded_precision(checkpoint) or _FULL  # checkpoints of version 0.1.0 have no record
    if trains or before == precision:
        return before, "that of the checkpoint"
    return _FULL, reason if before == _MIXED else "that of the checkpoint"


def suited_precision(trainer: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the precision that suits the devices of a trainer, and the reason.

    It follows from the hardware alone: measuring the speed of the first steps instead would let the
    load of a machine decide what a seed leads to. docs/performance.md has the measurements.

    Args:
        trainer: Arguments of a Trainer, of which other objects are nodes with a ``_target_``.

    Returns:
        ``bf16-mixed`` or ``32-true``; None if a plugin sets the precision.
    """
    if _has_plugin(trainer):
        return None, "a plugin sets it"
    kind = _device_type(trainer)
    if kind == "cuda":
        if _forks(trainer):
            return _FULL, "examining the GPUs would use CUDA, after which processes cannot fork"
        return _gpus_precision(trainer.get("devices", "auto"))
    if kind != "cpu":
        return _FULL, f"bfloat16 is not known to suit {kind}"
    if _has_amx():
        return _MIXED, "this CPU has AMX; trainer.precision=32-true gives full precision"
    return _FULL, "this CPU has no AMX"


def _has_plugin(trainer: Mapping[str, Any]) -> bool:
    """Return whether a plugin sets the precision, or may do so."""
    strategy: Any = trainer.get("strategy")
    if OmegaConf.is_dict(strategy) and strategy.get("precision_plugin"):
        return True
    plugins: Any = trainer.get("plugins") or []
    nodes = [plugins] if OmegaConf.is_dict(plugins) else plugins  # Lightning takes either
    targets = [get_object(node._target_) for node in nodes if "_target_" in node]
    return any(not isinstance(each, type) or issubclass(each, Precision) for each in targets)


def _forks(trainer: Mapping[str, Any]) -> bool:
    """Return whether Lightning forks the processes of the ranks, as it does in a notebook."""
    strategy = str(trainer.get("strategy", "auto"))
    notebook = hasattr(sys, "ps1") and strategy == "auto" and trainer.get("devices") not in (1, "1")
    return notebook or "fork" in strategy or "notebook" in strategy


def _device_type(trainer: Mapping[str, Any]) -> str:
    accelerator = str(trainer.get("accelerator", "auto"))
    if accelerator not in ("auto", "gpu"):
        return accelerator
    names = (name for name, kind in _ACCELERATORS.items() if kind.is_available())
    if accelerator == "auto":
        return next(names, "cpu")
    return next((name for name in names if name != "tpu"), "gpu")  # the Trainer refuses the latter


def _gpus_precision(devices: Any) -> tuple[str, str]:
    used = _gpus(devices)
    names = ", ".join(dict.fromkeys(map(torch.cuda.get_device_name, used))) or "no GPU"
    oldest = min(map(torch.cuda.get_device_capability, used), default=(0, 0))
    if oldest >= _AMPERE and torch.version.cuda:
        return _MIXED, f"for {names}; trainer.precision=32-true gives full precision"
    return _FULL, f"{names} has no fast bfloat16"


def _gpus(devices: Any) -> list[int]:
    """Return the indices of the GPUs that a trainer uses; none if it will refuse ``devices``."""
    given = list(devices) if OmegaConf.is_list(devices) else devices
    try:
        return CUDAAccelerator.parse_devices(-1 if given == "auto" else given) or []
    except MisconfigurationException:
        return []


def _has_amx() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices, and torch was built to use it.

    AVX-512 BF16 alone is not enough: on the same CPU without AMX, four of five networks trained at
    0.87 to 1.10 times the speed of float32.
    """
    cpu = torch.cpu
    return (
        torch.backends.mkldnn.is_available()
        and cpu._is_avx512_bf16_supported()
        and cpu._is_amx_tile_supported()
    )


def _suit_gpus(cfg: DictConfig) -> None:
    """Let cuDNN choose its algorithms by timing, and matrix products use TF32."""
    trainer = cfg.trainer
    is_open = "benchmark" in list(trainer) and trainer.benchmark is None
    if is_open and not trainer.get("deterministic"):
        trainer.benchmark = True
    if str(trainer.get("precision")) not in _FULL_NAMES:
        # The functions that replace this one stop torch.compile (pytorch/pytorch#166387).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_float32_matmul_precision("high")


def _fuse(cfg: DictConfig) -> None:
    """Let the optimizer update all parameters in one kernel.

    Lightning does not clip the gradients of such optimizers in mixed precision, and with 16-mixed
    callbacks would see scaled gradients. FSDP and DeepSpeed have parameters of their own.
    """
    node, trainer = cfg.get("optimizer"), cfg.trainer
    if not node or "fused" not in list(node) or get_object(node._target_) not in _FUSED:
        return
    is_open = node.fused is None and node.get("foreach") is None and not node.get("differentiable")
    plain = str(trainer.get("strategy", "auto")).startswith(("auto", "ddp"))
    unscaled = str(trainer.get("precision")) not in ("16", "16-mixed") and not _has_plugin(trainer)
    if is_open and plain and unscaled and not trainer.get("gradient_clip_val"):
        node.fused = True


def settle_ddp(trainer: pl.Trainer) -> None:
    """Let DDP's gradients be views of the buffers that are sent, which saves a copy of them.

    Raises:
        MisconfigurationException: If DDP would not sum the gradients correctly.
    """
    if not isinstance(trainer.strategy, DDPStrategy):
        return
    options = trainer.strategy._ddp_kwargs
    options.setdefault("gradient_as_bucket_view", True)
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in _callbacks(trainer))
    if options.get("static_graph") and (trainer.accumulate_grad_batches > 1 or scheduled):
        raise MisconfigurationException(
            "static_graph=true: PyTorch fails with accumulated gradients, or does not sum those of "
            "the processes (pytorch/pytorch#187732). Leave it out, or set "
            "trainer.accumulate_grad_batches=1."
        )


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]
