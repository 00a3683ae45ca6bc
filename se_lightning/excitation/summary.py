"""What the statistics say once an epoch is over: NumPy, float64, one process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ExcitationSummary"]


@dataclass(frozen=True, eq=False)
class ExcitationSummary:
    """Statistics of every gate over a split; L layers, K chosen classes, B bins.

    A gate that varies over space counts in ``counts`` with all its values, and elsewhere with its
    mean over space. What is NaN or infinite stays so in the moments of its channel. Arrays per
    channel are those of all layers, one after the other; :meth:`of` is a layer's part.

    Attributes:
        layers: module paths of the SE modules, L of them.
        channels: channels of each layer; C is their sum.
        classes: labels of the chosen classes, K of them.
        edges: (B + 1,) of the bins.
        counts: (C, B + 2) whole numbers: the bins, then NaN, then what lies outside.
        samples: (K + 1, L), the last row of all other samples.
        sums: (K + 1, C).
        squares: (K + 1, C), sums of squares.
        active: a layer, (hidden,): in how many samples the hidden unit was not 0; empty if hidden
            units were not recorded.
        hidden_sums: a layer, (hidden,).
        hidden_products: a layer, (hidden, hidden): sums of products.
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
        """Return where the layer's channels are."""
        start = sum(self.channels[:layer])
        return slice(start, start + self.channels[layer])

    @property
    def unseen(self) -> list[str]:
        """The layers whose gate was never computed."""
        seen = self.samples.sum(axis=0) > 0
        return [layer for layer, there in zip(self.layers, seen, strict=True) if not there]

    def histogram(self) -> np.ndarray:
        """Return the counts of each layer, (L, B + 2)."""
        return np.add.reduceat(self.counts, self._starts(), axis=0)

    def mean(self, label: int | None = None) -> np.ndarray:
        """Return each channel's mean (C,), over all samples or those of a chosen class.

        Raises:
            ValueError: if the class was not chosen.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._rows(self.sums, label) / self._samples(label)

    def std(self, label: int | None = None) -> np.ndarray:
        """Return each channel's standard deviation (C,), not Bessel-corrected, as :meth:`mean`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            second = self._rows(self.squares, label) / self._samples(label)
            return np.sqrt(np.maximum(second - self.mean(label) ** 2, 0))

    def layer_mean(self) -> np.ndarray:
        """Return each layer's mean gate, (L,)."""
        return np.add.reduceat(self.mean(), self._starts()) / self.channels

    def class_samples(self, label: int) -> int:
        """Return how many samples of a chosen class there were."""
        return int(self.samples[self._row(label)].max(initial=0))

    def selectivity(self, labels: Sequence[int] | None = None) -> np.ndarray:
        """Return, a layer, the share of the gates' variance that lies between classes, (L,).

        Over the samples of these classes: sum_k n_k (mean_k - mean)^2 over the sum of
        (gate - mean)^2, both summed over channels (eta squared). 0: the gates do not tell the
        classes apart; 1: they depend on the class alone; NaN: they do not vary, or fewer than two
        of the classes came. Gates that know nothing of n samples' classes have about (K - 1) / n.

        Args:
            labels: of chosen classes; None is all of the chosen.

        Raises:
            ValueError: if a class was not chosen.
        """
        rows = [self._row(label) for label in (self.classes if labels is None else labels)]
        n = np.repeat(self.samples[rows], self.channels, axis=1)
        sums, squares = self.sums[rows], self.squares[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            total_n = n.sum(axis=0)
            common = sums.sum(axis=0) ** 2 / total_n
            between = np.where(n > 0, sums**2 / n, 0).sum(axis=0) - common
            total = squares.sum(axis=0) - common
            # What is left of a constant's variance is rounding.
            total = np.where(total > 1e-12 * squares.sum(axis=0), total, 0)
            between, total = (np.add.reduceat(x, self._starts()) for x in (between, total))
            share = np.clip(between / total, 0, 1)
        classes = (self.samples[rows] > 0).sum(axis=0)
        return np.where(classes > 1, share, np.nan)

    def _starts(self) -> np.ndarray:
        return np.cumsum((0, *self.channels[:-1]))

    def _row(self, label: int) -> int:
        if label not in self.classes:
            raise ValueError(f"`label` (={label}) is none of the chosen classes {self.classes}.")
        return self.classes.index(label)

    def _rows(self, table: np.ndarray, label: int | None) -> np.ndarray:
        return table.sum(axis=0) if label is None else table[self._row(label)]

    def _samples(self, label: int | None) -> np.ndarray:
        return np.repeat(self._rows(self.samples, label), self.channels)
