"""Random numbers as a function of the sample, for a whole batch at once."""

import zlib
from functools import lru_cache

import numpy as np

__all__ = ["sample_seeds", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """Scramble 64 bits: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@lru_cache(maxsize=64)
def _stream(seed: int, epoch: int, purpose: str) -> np.ndarray:
    state = np.zeros(1, np.uint64)
    for number in (seed, epoch, zlib.crc32(purpose.encode())):
        state = _mix((state ^ np.uint64(number % 2**64)) + _GOLDEN)
    return state


def sample_seeds(seed: int, epoch: int, keys: np.ndarray, purpose: str) -> np.ndarray:
    """Return a random 64-bit number for each sample.

    One generator object per sample takes 14 microseconds each; this takes 20 per batch.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        keys: (N,) whole numbers, the samples.
        purpose: Name of the use; different names give independent numbers.

    Shape:
        (N,) uint64.

    Example:
        >>> sample_seeds(0, 1, np.array([4, 9]), "crop")[1] == sample_seeds(
        ...     0, 1, np.array([9]), "crop"
        ... )[0]
        np.True_
    """
    return _mix((keys.astype(np.uint64) + np.uint64(1)) * _GOLDEN ^ _stream(seed, epoch, purpose))


def uniform(seed: int, epoch: int, keys: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """Return ``count`` random numbers in [0, 1) for each sample.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        keys: (N,) whole numbers, the samples.
        purpose: Name of the use; different names give independent numbers.
        count: Numbers per sample.

    Shape:
        (N, count) float64.
    """
    streams = sample_seeds(seed, epoch, keys, purpose)[:, None]
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(streams + steps) >> np.uint64(11)) * 2.0**-53
