"""Sources of image files: folders, tar archives and shards, each with a cached index."""

from se_lightning.data.files.sources.image_folder import folder_sources
from se_lightning.data.files.sources.imagenet import imagenet_class_names, imagenet_sources
from se_lightning.data.files.sources.shard_writer import write_shards
from se_lightning.data.files.sources.source import Source

__all__ = [
    "Source",
    "folder_sources",
    "imagenet_class_names",
    "imagenet_sources",
    "write_shards",
]
