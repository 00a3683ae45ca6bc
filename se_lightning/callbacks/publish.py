"""Output of the callbacks: files in the run's folder, and the trainer's loggers."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from se_lightning.atomic import atomic_path
from se_lightning.lightning import Trainer

__all__ = ["alert", "output", "save_arrays", "save_figure", "send_histograms", "send_metrics"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def output(trainer: Trainer, file: str) -> Iterator[Path]:
    """Write a file of the folder ``excitation`` in the trainer's root folder.

    The block writes to the path that it gets. If it fails, for example because the disk is full,
    the log has a warning, an existing file stays, and the training goes on.
    """
    path = Path(trainer.default_root_dir) / "excitation" / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        log.warning("%s was not written: %s: %s", path, type(error).__name__, reason)


def send_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Log metrics with every logger."""
    for logger in trainer.loggers:
        # Not experiment.log(step=...): W&B's own step counts rows, and drops earlier steps.
        logger.log_metrics(dict(metrics), step=trainer.global_step)


def send_histograms(trainer: Trainer, counts: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    """Log histograms from counts, with W&B and TensorBoard.

    Args:
        trainer: Trainer with the loggers.
        counts: Counts by name, (B,).
        edges: Edges of the bins, (B + 1,), shared by all.
    """
    logger: Any
    for logger in trainer.loggers:
        if _is_wandbs(logger):
            import wandb

            rows = {k: wandb.Histogram(np_histogram=(c, edges)) for k, c in counts.items()}
            logger.log_metrics(rows, step=trainer.global_step)
        elif hasattr(logger.experiment, "add_histogram_raw"):
            for name, each in counts.items():
                logger.experiment.add_histogram_raw(
                    name, **_moments(each, edges), global_step=trainer.global_step
                )


def _is_wandbs(logger: Any) -> bool:
    """Return whether a logger, of any library, takes what W&B's takes."""
    return hasattr(logger, "log_image") and hasattr(logger, "log_table")


def _moments(counts: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Return the statistics that TensorBoard stores, approximating values by bin centers."""
    middles = (edges[:-1] + edges[1:]) / 2
    return {
        "min": edges[0],
        "max": edges[-1],
        "num": counts.sum(),
        "sum": counts @ middles,
        "sum_squares": counts @ middles**2,
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


def save_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> Path | None:
    """Save a figure as ``excitation/<name>.png``, and log it with W&B and TensorBoard.

    Args:
        trainer: Trainer with the folder and the loggers.
        name: Name of the figure.
        draw: Function that returns the figure.

    Returns:
        The path of the file; None, after a warning, if it could not be drawn or written.
    """
    figure = None
    with output(trainer, f"{name}.png") as temporary:
        drawn = draw()
        drawn.savefig(temporary, dpi=120, format="png")
        figure = drawn
    if figure is None:
        return None
    path = Path(trainer.default_root_dir) / "excitation" / f"{name}.png"
    logger: Any
    for logger in trainer.loggers:
        if _is_wandbs(logger):
            logger.log_image(f"excitation/{name}", [str(path)], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_figure"):
            logger.experiment.add_figure(
                f"excitation/{name}", figure, global_step=trainer.global_step, close=False
            )
    return path


def save_arrays(trainer: Trainer, name: str, **arrays: Any) -> None:
    """Save arrays as ``excitation/<name>.npz``; a failure is logged as a warning."""
    with output(trainer, f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Send an alert with each W&B logger."""
    logger: Any
    for logger in trainer.loggers:
        if _is_wandbs(logger):
            logger.experiment.alert(title=title, text=text)
