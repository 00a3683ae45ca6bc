"""Samplers that yield the batches of a rank as a function of seed and epoch."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from se_lightning.arguments import positive_integer

__all__ = ["EvalBatches", "OneEpoch", "TrainBatches"]

Batch = tuple[int, np.ndarray]


class _Size(Dataset):
    """A data set with a length and nothing else, for DistributedSampler."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class TrainBatches(DistributedSampler):
    """Training batches: a new permutation in each epoch, disjoint between ranks.

    Yields (epoch, keys) for ``DataLoader(dataset, sampler=..., batch_size=None)``. A key is the
    index of a sample, plus ``size`` times the number of its copy if ``repeats`` is above 1. All
    ranks get the same number of batches. Samples that do not divide among the ranks are left out
    of the epoch, and so is a last batch of one, which batch norm cannot use. Lightning keeps it,
    since it is a DistributedSampler, and calls ``set_epoch``.

    Args:
        size: Number of samples.
        batch_size: Samples per rank and batch, at least 2.
        seed: Seed of the order, together with the epoch.
        world_size: Number of ranks.
        rank: Rank of this process.
        repeats: Copies of a sample in an epoch of unchanged length, on different ranks where
            possible (repeated augmentation: Hoffer et al., arXiv:1901.09335, as in DeiT).

    Raises:
        ValueError: If ``batch_size`` is below 2, or a rank would have fewer than 2 samples.

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
        """Start at batch number ``batch`` of an epoch; later epochs are complete.

        Raises:
            ValueError: If the epoch has fewer batches.
        """
        if not 0 <= batch < len(self):
            raise ValueError(f"`batch` (={batch}) must be from 0 to {len(self) - 1}.")
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
    """Evaluation batches: every sample exactly once, in order, distributed over the ranks.

    Nothing is padded or repeated, so that metrics do not depend on the number of ranks. All ranks
    get the same number of batches, whose sizes differ by at most one (0 if there are fewer samples
    than ranks): DDP broadcasts buffers in each forward pass and would wait for a missing one.

    Args:
        size: Number of samples.
        batch_size: Maximum samples per rank and batch.
        world_size: Number of ranks.
        rank: Rank of this process.

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


class OneEpoch(SequentialSampler, DistributedSampler):
    """Sampler that repeats the first epoch of batches, for ``overfit_batches`` of Lightning.

    Lightning replaces a sampler that is not a SequentialSampler, and on several ranks one that is
    not a DistributedSampler.

    Args:
        batches: Sampler of the epoch. If it starts within an epoch, so does this one.
    """

    def __init__(self, batches: TrainBatches | EvalBatches) -> None:
        ranks = {"num_replicas": batches.num_replicas, "rank": batches.rank}
        DistributedSampler.__init__(self, batches.dataset, **ranks)
        self.batches = batches
        self.first, self.epoch = (0, 0), 0
        if isinstance(batches, TrainBatches):
            self.first, self.epoch = batches.first, batches.epoch
            batches.start_at(0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which only decides whether batches are skipped."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        skipped = self.first[1] if self.epoch == self.first[0] else 0
        return itertools.islice(self.batches, skipped, None)

    def __len__(self) -> int:
        return len(self.batches)
