"""Statistics of the gates over a split, in NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ExcitationSummary"]


@dataclass(frozen=True, eq=False)
class ExcitationSummary:
    """Statistics of every gate over a split, with L layers, K chosen classes and B bins.

    If a gate varies over space, all its values are counted in ``counts``; its mean over space is
    used elsewhere. NaN and infinity propagate into the moments of their channel. Per-channel arrays
    hold the channels of all layers one after another; :meth:`of` returns the slice of a layer.

    Attributes:
        layers: Module paths of the L SE modules.
        channels: Number of channels of each layer; their sum is C.
        classes: Labels of the K chosen classes.
        edges: Edges of the bins, (B + 1,).
        counts: Counts in the bins, of NaN, and of values out of range, (C, B + 2), integers.
        samples: Number of samples by class and layer, (K + 1, L); other classes in the last row.
        sums: Sums of the gates, (K + 1, C).
        squares: Sums of squares, (K + 1, C).
        active: For each layer, the number of samples in which each hidden unit was nonzero,
            (hidden,); empty if hidden units were not recorded.
        hidden_sums: For each layer, sums of the hidden units, (hidden,).
        hidden_products: For each layer, sums of their products, (hidden, hidden).
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    classes: tuple[int, ...]
    edges: np.ndarray
    counts: np.ndarray
    samples: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    active: tuple[np.ndarray, ...]
    hidden_sums: tuple[np.ndarray, ...]
    hidden_products: tuple[np.ndarray, ...]

    def of(self, layer: int) -> slice:
        """Return the slice of the layer's channels."""
        start = sum(self.channels[:layer])
        return slice(start, start + self.channels[layer])

    @property
    def unseen(self) -> list[str]:
        """Layers whose gate was never executed."""
        seen = self.samples.sum(axis=0) > 0
        return [layer for layer, there in zip(self.layers, seen, strict=True) if not there]

    def histogram(self) -> np.ndarray:
        """Return the counts of each layer, (L, B + 2)."""
        return np.add.reduceat(self.counts, self._starts(), axis=0)

    def mean(self, label: int | None = None) -> np.ndarray:
        """Return the mean of each channel (C,) over all samples or those of a chosen class.

        Raises:
            ValueError: If the class was not chosen.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._rows(self.sums, label) / self._samples(label)

    def std(self, label: int | None = None) -> np.ndarray:
        """Return the standard deviation of each channel (C,), without Bessel's correction."""
        with np.errstate(invalid="ignore", divide="ignore"):
            second = self._rows(self.squares, label) / self._samples(label)
            return np.sqrt(np.maximum(second - self.mean(label) ** 2, 0))

    def layer_mean(self) -> np.ndarray:
        """Return the mean gate of each layer, (L,)."""
        return np.add.reduceat(self.mean(), self._starts()) / self.channels

    def class_samples(self, label: int) -> int:
        """Return the number of samples of a chosen class."""
        return int(self.samples[self._row(label)].max(initial=0))

    def selectivity(self, labels: Sequence[int] | None = None) -> np.ndarray:
        """Return the share of each layer's gate variance that is between classes, (L,).

        This is eta squared: sum_k n_k (mean_k - mean)^2 over the sum of (gate - mean)^2 for the
        samples of these classes, both summed over channels. It is 0 if the gates do not depend on
        the class, 1 if they depend on the class alone, and NaN if they do not vary or fewer than
        two classes have samples. Gates that are independent of the class have about (K - 1) / n for
        n samples.

        Args:
            labels: A subset of the chosen classes. None uses all of them.

        Raises:
            ValueError: If a class was not chosen.
        """
        rows = [self._row(label) for label in (self.classes if labels is None else labels)]
        n = np.repeat(self.samples[rows], self.channels, axis=1)
        sums, squares = self.sums[rows], self.squares[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            total_n = n.sum(axis=0)
            common = sums.sum(axis=0) ** 2 / total_n
            between = np.where(n > 0, sums**2 / n, 0).sum(axis=0) - common
            total = squares.sum(axis=0) - common
            # The variance of a constant is not exactly 0, because of rounding.
            total = np.where(total > 1e-12 * squares.sum(axis=0), total, 0)
            between, total = (np.add.reduceat(x, self._starts()) for x in (between, total))
            share = np.clip(between / total, 0, 1)
        classes = (self.samples[rows] > 0).sum(axis=0)
        return np.where(classes > 1, share, np.nan)

    def _starts(self) -> np.ndarray:
        return np.cumsum((0, *self.channels[:-1]))

    def _row(self, label: int) -> int:
        if label not in self.classes:
            raise ValueError(
                f"`label` (={label}) must be one of the chosen classes {self.classes}."
            )
        return self.classes.index(label)

    def _rows(self, table: np.ndarray, label: int | None) -> np.ndarray:
        return table.sum(axis=0) if label is None else table[self._row(label)]

    def _samples(self, label: int | None) -> np.ndarray:
        return np.repeat(self._rows(self.samples, label), self.channels)
