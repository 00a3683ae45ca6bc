"""The order of samples: a pure function of seed and epoch, cut into the batches of a rank."""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from se_lightning.arguments import positive_integer

__all__ = ["EvalBatches", "OneEpoch", "TrainBatches"]

Batch = tuple[int, np.ndarray]


class _Size(Dataset):
    """A data set of which only the length matters."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class TrainBatches(DistributedSampler):
    """Batches of a fresh permutation each epoch, disjoint between ranks.

    It yields (epoch, keys) for ``DataLoader(dataset, sampler=..., batch_size=None)``; a key is
    the sample's index plus ``size`` times the number of its copy, which is 0 without repeated
    augmentation. All ranks get the same number of batches: what does not divide among them waits
    for another epoch's permutation, and so does a last sample that would be a batch by itself
    (batch norm cannot learn from one). It is a DistributedSampler so that Lightning leaves it in
    place and tells it the epoch.

    Args:
        size: number of samples.
        batch_size: samples per rank and batch, at least 2.
        seed: with the epoch, the only source of the order.
        world_size: number of ranks.
        rank: this one.
        repeats: copies of a sample in an epoch, which is not longer for it: it has that much fewer
            samples. The copies of a sample lie on different ranks, as far as there are so many
            (repeated augmentation: Hoffer et al., arXiv:1901.09335, as in DeiT's sampler).

    Raises:
        ValueError: if the batches are too small, or the samples too few for this many ranks.

    Example:
        >>> [len(keys) for _, keys in TrainBatches(9, 4, seed=0)]
        [4, 4]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        repeats: int = 1,
    ) -> None:
        super().__init__(_Size(size), num_replicas=world_size, rank=rank, seed=seed)
        self.size = size
        if batch_size < 2:
            raise ValueError(
                f"`batch_size` (={batch_size}) must be at least 2: batch norm cannot learn from "
                "a batch of one."
            )
        if size // world_size < 2:
            raise ValueError(f"{size} training samples are too few for {world_size} processes.")
        positive_integer("repeats", repeats)
        self.batch_size = batch_size
        self.repeats = repeats
        self.first = (0, 0)
        self.share = size // world_size
        if self.share % batch_size == 1:
            self.share -= 1

    def start_at(self, epoch: int, batch: int) -> None:
        """Begin with batch number ``batch`` of an epoch; later epochs are whole.

        Raises:
            ValueError: if the epoch has no such batch.
        """
        if not 0 <= batch < len(self):
            raise ValueError(f"`batch` (={batch}) must be below the {len(self)} of an epoch.")
        self.first = (epoch, batch)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        generator = np.random.default_rng((self.seed, self.epoch))
        indices = generator.permutation(self.size)[: -(-self.size // self.repeats)]
        copies = self.size * np.arange(self.repeats)
        keys = (indices[:, None] + copies).reshape(-1)[: self.size]
        mine = keys[self.rank :: self.num_replicas]
        skipped = self.first[1] if self.first[0] == self.epoch else 0
        for start in range(skipped * self.batch_size, self.share, self.batch_size):
            yield self.epoch, mine[start : min(start + self.batch_size, self.share)]

    def __len__(self) -> int:
        return math.ceil(self.share / self.batch_size)


class EvalBatches(DistributedSampler):
    """Every sample exactly once, in order, dealt out to the ranks.

    Nothing is padded or repeated, so that a figure does not depend on the number of ranks. All
    ranks get the same number of batches, of sizes that differ by one at the most (an empty one
    where there are fewer samples than ranks): DDP broadcasts buffers in each forward pass, and a
    rank that makes fewer of them would leave the others waiting.

    Args:
        size: number of samples.
        batch_size: the most samples per rank and batch.
        world_size: number of ranks.
        rank: this one.

    Example:
        >>> [len(indices) for _, indices in EvalBatches(101, 20, world_size=2, rank=1)]
        [17, 17, 16]
    """

    def __init__(self, size: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(_Size(size), num_replicas=world_size, rank=rank, shuffle=False)
        if batch_size < 1:
            raise ValueError(f"`batch_size` (={batch_size}) must be at least 1.")
        self.indices = np.arange(rank, size, world_size)
        self.batches = math.ceil(math.ceil(size / world_size) / batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for indices in np.array_split(self.indices, self.batches):
            yield 0, indices

    def __len__(self) -> int:
        return self.batches


class OneEpoch(SequentialSampler):
    """The batches of one epoch again and again, for Lightning's ``overfit_batches``.

    Lightning would put a SequentialSampler of single samples in the place of any other sampler.

    Args:
        batches: those of the epoch.
    """

    def __init__(self, batches: TrainBatches | EvalBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
