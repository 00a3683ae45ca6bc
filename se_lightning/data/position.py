"""Where a fit stands in the training data."""

from collections.abc import Mapping
from typing import Any

from se_lightning.lightning import MisconfigurationException, Trainer

__all__ = ["is_running", "next_batch", "require_same_shares"]


def is_running(trainer: Trainer) -> bool:
    """Return whether a trainer is at work, and not finished."""
    return trainer.state.status == "running"


def next_batch(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch and the batch that a fit trains on next, both counted from 0."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if epochs.ready == epochs.processed:  # between two epochs
        return epochs.processed, 0
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    batch = batches.processed
    if batch >= trainer.num_training_batches:
        return epochs.processed + 1, 0
    return epochs.processed, batch


def require_same_shares(state: Mapping[str, Any], *, world_size: int, batch_size: int) -> None:
    """Check that the batches of a rank are those of a checkpoint, if it is from within an epoch.

    Args:
        state: The datamodule's state in the checkpoint.
        world_size: Number of ranks of this run.
        batch_size: Samples per rank and batch of this run.

    Raises:
        MisconfigurationException: If a number differs.
    """
    saved = state["world_size"], state["batch_size"]
    if state["batch"] and saved != (world_size, batch_size):
        raise MisconfigurationException(
            f"The checkpoint was saved within an epoch, by {saved[0]} processes with "
            f"batch_size={saved[1]}, but this run has {world_size} with batch_size={batch_size}. "
            "Resume with the same numbers, or start a new run from these weights (model.weights=)."
        )
