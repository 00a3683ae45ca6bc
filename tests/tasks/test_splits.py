"""Batches of a split for tasks."""

import torch
from pytorch_lightning import LightningDataModule

from se_lightning.tasks.splits import split_batches


def test_batches_without_images_are_left_out():
    """As they are if all files of a batch are unreadable and data.on_error=skip."""

    class Data(LightningDataModule):
        def val_dataloader(self):
            for size in (2, 0, 1):
                yield torch.zeros(size, 1, 4, 4), torch.zeros(size, dtype=torch.int64)

    sizes = [len(labels) for _, labels in split_batches(Data(), "val", torch.device("cpu"))]
    assert sizes == [2, 1]
