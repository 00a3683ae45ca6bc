"""The best few checkpoints, beside the best one."""

from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["TopK"]


class TopK(ModelCheckpoint):
    """Lightning's ModelCheckpoint once more, for a file an epoch.

    Lightning keeps the states of callbacks by class and monitored metric, so that two of its own
    with the same metric cannot be saved.
    """
