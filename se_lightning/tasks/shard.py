"""Write a data set as shards, for training across machines."""

from pathlib import Path

from pytorch_lightning import LightningDataModule

from se_lightning.data.files.datamodule import FileDataModule
from se_lightning.data.files.sources import write_shards

__all__ = ["shard"]


def shard(
    datamodule: LightningDataModule, *, output: str | None = None, shard_mb: int = 300
) -> dict[str, float]:
    """Write the files of all splits into WebDataset tars; go on where an earlier call stopped.

    Args:
        datamodule: one of image files.
        output: folder of the shards; ``data.root`` of those who read them.
        shard_mb: the most that a shard has, MB (10^6 bytes).

    Returns:
        ``shards``, their number.

    Raises:
        ValueError: if ``output`` is not given or has other shards, or the data set has no files.
        OSError: if the disk is full, or a file cannot be read; the same command goes on.
    """
    if not isinstance(datamodule, FileDataModule):
        raise ValueError("task=shard is for image files: data=imagenet or data=image_folder.")
    if output is None:
        raise ValueError("task=shard needs the folder to write to: task.output=DIR.")
    sources = {split: datamodule.source(split) for split in ("train", "val", "test")}
    paths = write_shards(sources, datamodule.class_names, Path(output), shard_mb=shard_mb)
    return {"shards": len(paths)}
