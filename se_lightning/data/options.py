"""The options that all datamodules have."""

from collections.abc import Sequence
from typing import TypedDict

__all__ = ["ImageOptions"]


class ImageOptions(TypedDict, total=False):
    """The options of :class:`se_lightning.data.base.ImageDataModule`."""

    batch_size: int
    eval_batch_size: int
    drop_last: bool
    pin_memory: bool | None
    seed: int
    rotation: float
    pixel_jitter: int
    color_jitter: float | Sequence[float]
    rand_augment: int | None
    trivial_augment: bool
    random_erasing: float
    cutout: int
    mixup: float
    cutmix: float
    repeats: int
