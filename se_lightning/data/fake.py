"""Random images of any shape, to try out a network or time it."""

from typing import ClassVar, Unpack

import numpy as np

from se_lightning.arguments import positive_integer
from se_lightning.data.in_memory.datamodule import InMemoryDataModule, InMemoryOptions

__all__ = ["FakeDataModule"]


class FakeDataModule(InMemoryDataModule):
    """Random pixels with random labels, the same in every run.

    Args:
        size: Number of training images; validation and test have a quarter each.
        num_classes: Number of classes K.
        in_channels: Number of channels.
        image_size: Side of the images, pixels.
        **options: See :class:`se_lightning.data.in_memory.datamodule.InMemoryDataModule`; here
            ``batch_size=8`` and ``eval_batch_size=8`` by default.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> data = FakeDataModule(size=8, image_size=299, batch_size=2)
        >>> data.setup()
        >>> next(iter(data.train_dataloader()))[0].shape
        torch.Size([2, 3, 299, 299])
    """

    mean = 0.5
    std = 0.2887  # of a uniform distribution on [0, 1]: 1 / sqrt(12)
    defaults: ClassVar = InMemoryOptions(batch_size=8, eval_batch_size=8)

    def __init__(
        self,
        *,
        size: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        **options: Unpack[InMemoryOptions],
    ) -> None:
        shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        for name, value in {"size": size, **shape}.items():
            positive_integer(name, value)
        super().__init__(**(FakeDataModule.defaults | options))
        self.size = size
        self.in_channels = in_channels
        self.image_size = image_size
        self.class_names = tuple(map(str, range(num_classes)))

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # noqa: D102
        generator = np.random.default_rng(0)
        shape = (self.in_channels, self.image_size, self.image_size)
        part = max(1, self.size // 4)
        return {
            split: (
                generator.integers(0, 256, (size, *shape), dtype=np.uint8),
                generator.integers(0, self.num_classes, size),
            )
            for split, size in {"train": self.size, "val": part, "test": part}.items()
        }
