"""Augmentation of whole batches, with parameters of each sample's own."""

import torch
from torch import Tensor
from torch.nn import functional as F

from se_lightning.data.order import sample_generator

__all__ = ["CropFlip", "crop_flip"]


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Cut a window of the original size out of each zero-padded image, mirrored where asked.

    One gather for the whole batch; no loop over samples.

    Args:
        images: (N, C, H, W), any dtype.
        offsets: (N, 2) whole numbers from 0 to ``2 * padding``: the window's top and left edge.
        flips: (N,) booleans: mirror left and right.
        padding: pixels of zeros on each side.

    Shape:
        (N, C, H, W) to the same.

    Example:
        >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
        >>> crop_flip(image, torch.tensor([[0, 1]]), torch.tensor([False]), padding=1).tolist()
        [[[[0, 0], [1, 2]]]]
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = offsets[:, 0, None] + torch.arange(h, device=images.device)
    columns = offsets[:, 1, None] + torch.arange(w, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    flat = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]
    index = flat.view(n, 1, h * w).expand(n, c, h * w)
    return padded.reshape(n, c, -1).gather(2, index).view(n, c, h, w)


class CropFlip:
    """Random crop after zero padding, and random mirroring, a pure function of the sample.

    What happens to a sample depends on (seed, epoch, index) alone: not on the batch it lies in,
    the rank, or the number of workers.

    Args:
        size: number of samples in the training set.
        padding: pixels; 0 crops nothing.
        flip: mirror every other image, on average.
        seed: of the run.

    Example:
        >>> augment = CropFlip(10, padding=2, flip=True, seed=0)
        >>> augment(torch.zeros(3, 1, 8, 8), epoch=0, indices=torch.tensor([1, 5, 7])).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, size: int, *, padding: int, flip: bool, seed: int) -> None:
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"`crop_padding` (={padding!r}) must be a whole number of pixels.")
        self.size, self.padding, self.flip, self.seed = size, padding, flip, seed
        self._epoch = -1

    def __call__(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """Augment images (N, C, H, W), the samples ``indices`` (N,) of the training set."""
        if not (self.padding or self.flip):
            return images
        if epoch != self._epoch:
            # One table for the epoch: looked up by sample, it is the same in whatever batch.
            generator = sample_generator(self.seed, epoch)
            self._offsets = torch.randint(
                0, 2 * self.padding + 1, (self.size, 2), generator=generator
            )
            self._flips = torch.rand(self.size, generator=generator) < (0.5 if self.flip else 0)
            self._epoch = epoch
        return crop_flip(images, self._offsets[indices], self._flips[indices], self.padding)
