"""Samplers that yield the samples of a rank as a function of seed and epoch."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from se_lightning.arguments import positive_integer

__all__ = ["PADDING", "EpochCounter", "EvalSampler", "OneEpoch", "TrainSampler", "pack", "unpack"]

Batch = tuple[int, np.ndarray]  # epoch and keys
# One integer per sample is all that a DataLoader and other libraries' samplers can carry.
_BITS = 40  # of the key; the epoch, plus 1, is above them
PADDING = -(1 << 62)  # no sample, on a rank that has one less than the others


def pack(epoch: int, keys: np.ndarray) -> list[int]:
    """Return one integer per key that contains its epoch.

    Example:
        >>> unpack(pack(3, np.array([5, 7])))
        (3, array([5, 7]))
    """
    return (keys + ((epoch + 1) << _BITS)).tolist()


def unpack(codes: Sequence[int]) -> tuple[int | None, np.ndarray]:
    """Return the epoch and the keys of integers from a sampler; None if they are plain indices."""
    keys = np.asarray(codes, np.int64)
    keys = keys[keys != PADDING]
    epochs = keys >> _BITS
    if not len(keys) or epochs[0] <= 0:
        return None, keys
    return int(epochs[0]) - 1, keys - (epochs << _BITS)


class EpochCounter:
    """The epoch that comes after the last one that any loader of a datamodule has begun."""

    next = 0


class _Size(Dataset):
    """A data set with a length and nothing else, for DistributedSampler."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class TrainSampler(DistributedSampler):
    """Training samples: a new permutation in each epoch, disjoint between ranks.

    Yields one integer per sample, which contains the epoch and a key; see :func:`unpack`. A key is
    the index of a sample, plus ``size`` times the number of its copy if ``repeats`` is above 1. All
    ranks get the same number of samples. Samples that do not divide among the ranks are left out
    of the epoch, and so is a last batch of one, which batch norm cannot use.

    Each iteration is the next epoch, unless ``set_epoch`` chose one. Lightning keeps the sampler,
    since it is a DistributedSampler, and calls ``set_epoch``.

    Args:
        size: Number of samples.
        batch_size: Samples per rank and batch, at least 2.
        seed: Seed of the order, together with the epoch.
        world_size: Number of ranks.
        rank: Rank of this process.
        repeats: Copies of a sample in an epoch of unchanged length, on different ranks where
            possible (repeated augmentation: Hoffer et al., arXiv:1901.09335, as in DeiT).
        drop_last: Leave out a last batch of less than ``batch_size``.
        counter: Counts the epochs, also for other samplers.

    Raises:
        ValueError: If ``batch_size`` is below 2, or a rank would have too few samples.

    Example:
        >>> order = TrainSampler(9, 4, seed=0)
        >>> [unpack(list(order))[0] for _ in range(3)]
        [0, 1, 2]
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
        drop_last: bool = False,
        counter: EpochCounter | None = None,
    ) -> None:
        super().__init__(_Size(size), num_replicas=world_size, rank=rank, seed=seed)
        self.size = size
        if batch_size < 2:
            raise ValueError(
                f"`batch_size` (={batch_size}) must be at least 2: batch norm cannot learn from "
                "a batch of one."
            )
        positive_integer("repeats", repeats)
        self.batch_size = batch_size
        self.repeats = repeats
        self.drop_last = drop_last
        self.counter = EpochCounter() if counter is None else counter
        self.first = (0, 0)
        self._chosen = False  # whether `epoch` was set since the last iteration
        self.share_among(world_size, rank)

    def share_among(self, world_size: int, rank: int) -> None:
        """Yield the samples of one of several ranks.

        Raises:
            ValueError: If a rank would have too few samples.
        """
        share = self.size // world_size
        if share < 2 or (self.drop_last and share < self.batch_size):
            least = f" with batch_size={self.batch_size} and drop_last" if share >= 2 else ""
            raise ValueError(
                f"{self.size} training samples are too few for {world_size} processes{least}."
            )
        if self.drop_last or share % self.batch_size == 1:
            share -= share % self.batch_size
        self.num_replicas, self.rank, self.share = world_size, rank, share

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; later ones go on from there."""
        super().set_epoch(epoch)
        self._chosen = True

    def start_at(self, epoch: int, batch: int) -> None:
        """Start at batch number ``batch`` of an epoch; later epochs are complete.

        Raises:
            ValueError: If the epoch has fewer batches.
        """
        batches = math.ceil(self.share / self.batch_size)
        if not 0 <= batch < batches:
            raise ValueError(f"`batch` (={batch}) must be from 0 to {batches - 1}.")
        self.first = (epoch, batch)
        self.set_epoch(epoch)

    def keys(self, epoch: int, rank: int | None = None) -> np.ndarray:
        """Return the keys of a rank in an epoch, (samples,); None for the rank of this process."""
        generator = np.random.default_rng((self.seed, epoch))
        indices = generator.permutation(self.size)[: -(-self.size // self.repeats)]
        copies = self.size * np.arange(self.repeats)
        keys = (indices[:, None] + copies).reshape(-1)[: self.size]
        return keys[self.rank if rank is None else rank :: self.num_replicas][: self.share]

    def __iter__(self) -> Iterator[int]:
        if not self._chosen:
            self.epoch = self.counter.next
        self._chosen, self.counter.next = False, self.epoch + 1
        skipped = self.first[1] if self.first[0] == self.epoch else 0
        yield from pack(self.epoch, self.keys(self.epoch)[skipped * self.batch_size :])

    def __len__(self) -> int:
        return self.share


class EvalSampler(DistributedSampler):
    """Evaluation samples: the index of each exactly once, in order, distributed over the ranks.

    No sample is repeated, so that metrics do not depend on the number of ranks. All ranks get
    equally many integers: DDP broadcasts buffers in each forward pass and would wait for a missing
    batch. On a rank that has one sample less, the last integer is :data:`PADDING`, which the data
    sets of this package leave out of the batch.

    Args:
        size: Number of samples.
        world_size: Number of ranks.
        rank: Rank of this process.

    Example:
        >>> list(EvalSampler(5, world_size=2, rank=0))
        [0, 2, 4]
        >>> list(EvalSampler(5, world_size=2, rank=1))[:2]
        [1, 3]
    """

    def __init__(self, size: int, *, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(_Size(size), num_replicas=world_size, rank=rank, shuffle=False)
        self.size = size

    def share_among(self, world_size: int, rank: int) -> None:
        """Yield the samples of one of several ranks."""
        self.num_replicas, self.rank = world_size, rank

    def __iter__(self) -> Iterator[int]:
        mine = range(self.rank, self.size, self.num_replicas)
        return itertools.chain(mine, [PADDING] * (len(self) - len(mine)))

    def __len__(self) -> int:
        return math.ceil(self.size / self.num_replicas)


class OneEpoch(SequentialSampler, DistributedSampler):
    """Sampler that repeats the first epoch of another one, for ``overfit_batches`` of Lightning.

    Lightning replaces a sampler that is not a SequentialSampler, and on several ranks one that is
    not a DistributedSampler.

    Args:
        order: Sampler of the epoch. If it starts within an epoch, so does this one.
    """

    def __init__(self, order: TrainSampler | EvalSampler) -> None:
        DistributedSampler.__init__(self, order.dataset, order.num_replicas, order.rank)
        self.order = order
        self.first, self.epoch = (0, 0), 0
        if isinstance(order, TrainSampler):
            self.first, self.epoch = order.first, order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which only decides whether batches are skipped."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.order, EvalSampler):
            return iter(self.order)
        skipped = self.first[1] if self.epoch == self.first[0] else 0
        return iter(pack(0, self.order.keys(0)[skipped * self.order.batch_size :]))

    def __len__(self) -> int:
        return len(self.order)
