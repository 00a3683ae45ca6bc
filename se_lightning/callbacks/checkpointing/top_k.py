"""Callback that keeps the k best checkpoints."""

from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["TopK"]


class TopK(ModelCheckpoint):
    """A second ModelCheckpoint, with one file per epoch.

    Lightning identifies the states of callbacks by class and monitored metric, so it cannot save
    two ModelCheckpoints with the same metric.
    """
