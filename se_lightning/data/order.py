"""The order of samples: a pure function of seed and epoch, cut into the batches of a rank."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["EvalBatches", "TrainBatches"]

Batch = tuple[int, np.ndarray]


class _Size(Dataset):
    """A data set of which only the length matters."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class TrainBatches(DistributedSampler):
    """Batches of a fresh permutation each epoch, disjoint between ranks.

    It yields (epoch, indices) for ``DataLoader(dataset, sampler=..., batch_size=None)``. All ranks
    get the same number of batches: what does not divide among them waits for another epoch's
    permutation, and so does a last sample that would be a batch by itself (batch norm cannot
    learn from one). It is a DistributedSampler so that Lightning leaves it in place and tells it
    the epoch.

    Args:
        size: number of samples.
        batch_size: samples per rank and batch, at least 2.
        seed: with the epoch, the only source of the order.
        world_size: number of ranks.
        rank: this one.

    Raises:
        ValueError: if the batches are too small, or the samples too few for this many ranks.

    Example:
        >>> [len(indices) for _, indices in TrainBatches(9, 4, seed=0)]
        [4, 4]
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, world_size: int = 1, rank: int = 0
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
        self.batch_size = batch_size
        self.share = size // world_size
        if self.share % batch_size == 1:
            self.share -= 1

    def __iter__(self) -> Iterator[Batch]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.size)[self.rank :: self.num_replicas]
        for start in range(0, self.share, self.batch_size):
            yield self.epoch, order[start : min(start + self.batch_size, self.share)]

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


def sample_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch's augmentation, apart from that of its order."""
    state = np.random.SeedSequence((seed, epoch, 1)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
