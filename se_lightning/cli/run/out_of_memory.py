"""Out of memory: which batch was too large, and the same steps with half of it.

Nothing here imports torch: the command line asks before it is there.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from se_lightning.cli.run import rank_failures as failures
from se_lightning.cli.run.folder import quoted
from se_lightning.cli.run.result import RESULT
from se_lightning.ranks import INHERITED, external_rank, is_further_rank

__all__ = ["BatchTooLargeError", "begin_anew", "explained", "ran_out"]

log = logging.getLogger(__name__)

_BEGIN = "out of memory with "
_SIGNS = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|not enough memory|ALLOC_FAILED", re.I
)
_SMALLEST = 2  # batch norm cannot learn from a batch of one
# What a run that has saved nothing may have left in its directory.
_LEFT = (RESULT, "metrics.csv", "hparams.yaml", "nonfinite.json", "wandb_id")


class BatchTooLargeError(ValueError):
    """Memory ran out; the message says with which batch, and what needs less."""


def ran_out(error: BaseException) -> bool:
    """Tell whether it was memory that was lacking, a GPU's or the machine's.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # of a worker that could not be started
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None


@contextlib.contextmanager
def explained(cfg: DictConfig, trainer: Any, datamodule: Any) -> Iterator[None]:
    """Word what happens in the block when memory runs out.

    Raises:
        BatchTooLargeError: in the place of the error.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise BatchTooLargeError(_words(error, cfg, trainer, datamodule)) from error


def _words(error: Exception, cfg: DictConfig, trainer: Any, datamodule: Any) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    evaluates = any(frame.name in ("validation_step", "test_step") for frame in frames)
    key = "data.eval_batch_size" if evaluates else "data.batch_size"
    size = getattr(datamodule, key.rpartition(".")[2], "?")
    channels, side = (getattr(datamodule, name, "?") for name in ("in_channels", "image_size"))
    first = str(error).strip().partition("\n")[0].partition(" If reserved")[0]
    text = (
        f"{_BEGIN}{key}={size} of {channels}x{side}x{side} images on "
        f"{trainer.strategy.root_device} ({first[:300] or type(error).__name__}): "
    )
    changes = _changes(cfg, text)
    if changes is None:
        return f"{text}what is left is model.grad_checkpointing=true, or a smaller network."
    what = "changes no figure" if evaluates else "makes the same steps with half of it"
    return f"{text}{' '.join(changes)} {what}; on_oom=accumulate does so by itself."


def _changes(cfg: DictConfig, words: str) -> list[str] | None:
    """Return what halves the memory of a batch; None where it is small already, or unknown."""
    if words.startswith(f"{_BEGIN}data.eval_batch_size"):
        size = cfg.data.get("eval_batch_size")
        return [f"data.eval_batch_size={size // 2}"] if isinstance(size, int) and size > 1 else None
    size = cfg.data.get("batch_size")
    if not isinstance(size, int) or size // 2 < _SMALLEST:
        return None
    batches = 2 * (cfg.trainer.get("accumulate_grad_batches") or 1)
    return [f"data.batch_size={size // 2}", f"trainer.accumulate_grad_batches={batches}"]


def begin_anew(error: BaseException, cfg: DictConfig, run_dir: Path) -> None:
    """Begin the run anew with half the batch, in this process's place, where on_oom says so.

    It returns where memory was not lacking, or nothing can be done about it. The process is
    replaced since only its end frees a GPU's memory for sure.

    Args:
        error: this rank's, or the failure of another.
        cfg: of the run.
        run_dir: where it begins again.
    """
    words = getattr(error, "error", str(error))
    if cfg.get("on_oom") != "accumulate" or not words.startswith(_BEGIN) or is_further_rank():
        return
    changes = _changes(cfg, words)
    if changes is None:
        return
    obstacle = _obstacle(cfg, run_dir)
    if obstacle:
        log.warning("on_oom=accumulate does not begin anew: %s.", obstacle)
        return
    size = words.removeprefix(_BEGIN).partition(" ")[0]
    log.warning("Out of memory with %s: the run begins anew with %s.", size, " ".join(changes))
    _let_go()
    for name in _LEFT:
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there
        (run_dir / "checkpoints").rmdir()
    environment = {k: v for k, v in os.environ.items() if k not in INHERITED}
    os.execve(sys.executable, _command(sys.argv, changes, run_dir), environment)


def _obstacle(cfg: DictConfig, run_dir: Path) -> str | None:
    if external_rank() is not None:
        return "torchrun or srun has started the ranks, and would have to start them again"
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return "the jobs of this multirun share a process"
    if cfg.get("resume") is not None:
        return "a run that goes on keeps its batch size"
    if any((run_dir / "checkpoints").glob("*")):
        return "checkpoints are saved already, which it would have to throw away"
    return None


def _let_go() -> None:
    """End what this process has started: it would live on beside the new one."""
    failures.hurry()
    if hasattr(signal, "alarm"):
        signal.alarm(0)  # an alarm outlives the process's replacement
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in Path("/proc/self/fd").glob("[0-9]*"):
        number = int(descriptor.name)
        if number > 2:  # a GPU's, say, whose memory is freed when the last one closes
            with contextlib.suppress(OSError):  # closed since it was listed
                os.set_inheritable(number, False)


def _command(argv: list[str], changes: list[str], run_dir: Path) -> list[str]:
    """Return the same command with the changes in it, and into the same directory."""
    replaced = {change.partition("=")[0] for change in changes}
    # Of a multirun's job, too, .hydra then says with what it was trained in the end.
    replaced |= {"hydra.run.dir", "hydra.output_subdir"}
    kept = [a for a in argv[1:] if a.lstrip("+").partition("=")[0] not in replaced]
    command = [sys.executable, "-m", "se_lightning", *kept, *changes]
    return [*command, f"hydra.run.dir={quoted(run_dir)}"]
