"""The position of a fit within its epochs."""

from typing import Any

from se_lightning.lightning import Trainer

__all__ = ["next_batch"]


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
