"""Out of memory: reporting the batch that was too large, and restarting with half of it.

Nothing here imports torch, since the command line must answer before torch is loaded.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from se_lightning.cli.command import Command, quoted
from se_lightning.cli.errors import Failure, Kind
from se_lightning.cli.process import replace_process
from se_lightning.cli.run import rank_failures
from se_lightning.cli.run.folder import RunFolder
from se_lightning.ranks import external_rank, is_further_rank

__all__ = ["BatchTooLargeError", "explained", "ran_out", "restart_smaller"]

log = logging.getLogger(__name__)

# Torch's CPU allocator and cuBLAS raise a plain RuntimeError; only its message identifies it.
_SIGNS = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|not enough memory|ALLOC_FAILED", re.I
)
_SMALLEST = 2  # batch norm cannot learn from a single sample


class BatchTooLargeError(ValueError):
    """Memory ran out with a batch of ``size``, an override; ``changes`` are those that halve it."""

    kind: Kind = "out_of_memory"

    def __init__(self, message: str, changes: list[str], size: str) -> None:
        super().__init__(message)
        self.details = {"size": size, "changes": changes}


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that a GPU or the machine ran out of memory.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # e.g. a worker that could not be started
    torchs = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, MemoryError | torchs):
        return True
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None


@contextlib.contextmanager
def explained(cfg: DictConfig, trainer: Any, datamodule: Any) -> Iterator[None]:
    """Replace an out-of-memory error in the block with one that names the batch.

    Raises:
        BatchTooLargeError: If memory runs out.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise _explain(error, cfg, trainer, datamodule) from error


def _explain(
    error: Exception, cfg: DictConfig, trainer: Any, datamodule: Any
) -> BatchTooLargeError:
    frames = traceback.extract_tb(error.__traceback__)
    evaluates = any(frame.name in ("validation_step", "test_step") for frame in frames)
    key = "data.eval_batch_size" if evaluates else "data.batch_size"
    size = f"{key}={getattr(datamodule, key.rpartition('.')[2], '?')}"
    channels, side = (getattr(datamodule, name, "?") for name in ("in_channels", "image_size"))
    first = str(error).strip().partition("\n")[0].partition(" If reserved")[0]
    text = (
        f"out of memory with {size} of {channels}x{side}x{side} images on "
        f"{trainer.strategy.root_device} ({first[:300] or type(error).__name__})."
    )
    changes = _halved(cfg, evaluates=evaluates)
    if not changes:
        advice = "Set model.grad_checkpointing=true, or choose a smaller network."
    elif evaluates:
        advice = (
            f"Set {' '.join(changes)}, which changes no metric; on_oom=accumulate does this "
            "automatically."
        )
    else:
        advice = (
            f"Set {' '.join(changes)} for the same optimizer steps with half the batch; "
            "on_oom=accumulate does this automatically."
        )
    return BatchTooLargeError(f"{text} {advice}", changes, size)


def _halved(cfg: DictConfig, *, evaluates: bool) -> list[str]:
    """Return the overrides that halve a batch; none if it is already small, or unknown."""
    if evaluates:
        size = cfg.data.get("eval_batch_size")
        return [f"data.eval_batch_size={size // 2}"] if isinstance(size, int) and size > 1 else []
    size = cfg.data.get("batch_size")
    if not isinstance(size, int) or size // 2 < _SMALLEST:
        return []
    batches = 2 * (cfg.trainer.get("accumulate_grad_batches") or 1)
    return [f"data.batch_size={size // 2}", f"trainer.accumulate_grad_batches={batches}"]


def restart_smaller(failure: Failure, cfg: DictConfig, folder: RunFolder, command: Command) -> None:
    """Replace this process with the same run at half the batch, if ``on_oom`` requests it.

    Returns if the failure has another cause or a restart is impossible.
    """
    changes = failure.details.get("changes")
    wanted = cfg.get("on_oom") == "accumulate" and failure.kind == "out_of_memory"
    if not wanted or not changes or is_further_rank():
        return
    obstacle = _obstacle(cfg, folder)
    if obstacle:
        log.warning("on_oom=accumulate cannot restart the run: %s.", obstacle)
        return
    size = failure.details["size"]
    log.warning("Out of memory with %s: restarting with %s.", size, " ".join(changes))
    folder.prepare_restart()
    rank_failures.hurry()
    os.chdir(HydraConfig.get().runtime.cwd)  # with hydra.job.chdir, this is another folder
    # So that .hydra records the final settings, even for a job of a multirun.
    smaller = command.without("hydra.output_subdir").with_(*changes)
    replace_process(smaller.with_(f"hydra.run.dir={quoted(folder.path)}"))


def _obstacle(cfg: DictConfig, folder: RunFolder) -> str | None:
    if external_rank() is not None:
        return "torchrun or srun started the ranks and would have to restart them"
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return "the jobs of this multirun share a process"
    if cfg.get("resume") is not None:
        return "a resumed run keeps its batch size"
    if any(folder.checkpoints.glob("*")):
        return "it would discard checkpoints that are already saved"
    return None
