"""The handwritten digits of scikit-learn: real images without a download."""

from typing import ClassVar, Unpack

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from se_lightning.data.in_memory.datamodule import InMemoryDataModule, InMemoryOptions

__all__ = ["DigitsDataModule"]


class DigitsDataModule(InMemoryDataModule):
    """1,797 handwritten digits by 43 writers, enlarged from 8x8 to 32x32 pixels.

    The split is fixed and stratified: 1,257 training, 180 validation and 360 test images. It does
    not depend on ``seed``.

    Args:
        **options: See :class:`se_lightning.data.in_memory.datamodule.InMemoryDataModule`; here
            ``batch_size=64``, ``eval_batch_size=256`` and ``crop_padding=4`` by default.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> data = DigitsDataModule(batch_size=64)
        >>> data.setup()
        >>> next(iter(data.train_dataloader()))[0].shape
        torch.Size([64, 1, 32, 32])

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """

    image_size = 32
    mean = 0.3049
    std = 0.3234
    class_names = tuple("0123456789")
    defaults: ClassVar = InMemoryOptions(batch_size=64, eval_batch_size=256, crop_padding=4)

    def __init__(self, **options: Unpack[InMemoryOptions]) -> None:
        super().__init__(**(DigitsDataModule.defaults | options))

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # noqa: D102
        small, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(small).view(-1, 1, 8, 8) * (255 / 16)
        size = (self.image_size, self.image_size)
        large = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        images = large.round().to(torch.uint8).squeeze(1).numpy()
        fit, test = train_test_split(
            np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
        )
        train, val = train_test_split(fit, test_size=180, random_state=0, stratify=labels[fit])
        parts = {"train": train, "val": val, "test": test}
        return {split: (images[part], labels[part]) for split, part in parts.items()}
