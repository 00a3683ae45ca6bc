"""Conversion of a data set to shards, for training on several machines."""

from pathlib import Path

from se_lightning.data.files.datamodule import FileDataModule
from se_lightning.data.files.sources import write_shards
from se_lightning.lightning import LightningDataModule

__all__ = ["shard"]


def shard(
    datamodule: LightningDataModule, *, output: str | None = None, shard_mb: int = 300
) -> dict[str, float]:
    """Write the files of all splits to WebDataset tars; resume an interrupted call.

    Args:
        datamodule: Datamodule of image files.
        output: Folder of the shards, to be used as ``data.root``.
        shard_mb: Maximum size of a shard, MB (10^6 bytes).

    Returns:
        The number of shards, as ``shards``.

    Raises:
        ValueError: If ``output`` is missing or has other shards, or the data are not image files.
        OSError: If the disk is full, or a file cannot be read.
    """
    if not isinstance(datamodule, FileDataModule):
        raise ValueError("task=shard needs image files: data=imagenet or data=image_folder.")
    if output is None:
        raise ValueError("task=shard needs the folder to write to: task.output=DIR.")
    sources = {split: datamodule.source(split) for split in ("train", "val", "test")}
    paths = write_shards(sources, datamodule.class_names, Path(output), shard_mb=shard_mb)
    return {"shards": len(paths)}
