"""Distance between the gates of two networks, layer by layer."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.excitation.taps import Taps, per_sample

__all__ = [
    "Drift",
    "ImageCosine",
    "check_comparable",
    "cosine",
    "drift_of",
    "jensen_shannon",
]


class Drift(NamedTuple):
    """Distance between two networks' gates in one layer.

    The cosines compare channel with channel. They are meaningful for a network before and after
    training, but hardly for networks with different initial weights. The divergence is always
    meaningful.

    Attributes:
        layer: Module path of the SE module.
        channels: Number of channels, C.
        cosine: Cosine between the mean gates (C,) over all images; 1 means equal up to a factor.
        image_cosine: Cosine between the gates (C,) of one image, averaged over images.
        js: Jensen-Shannon divergence of the histograms, base 2; 0 for equal, 1 for disjoint
            distributions.
    """

    layer: str
    channels: int
    cosine: float
    image_cosine: float
    js: float


def check_comparable(first: Taps, second: Taps, names: Sequence[str]) -> None:
    """Check that two networks have the same gates.

    Raises:
        ValueError: If the layers or channels differ; the message names the first difference.
    """
    layers_of = (
        [f"{layer} ({channels} channels)" for layer, channels in zip(t.layers, t.channels)]  # noqa: B905
        for t in (first, second)
    )
    for one, other in zip_longest(*layers_of, fillvalue="no further gate"):
        if one != other:
            raise ValueError(
                "Only networks with the same gates can be compared. First difference: "
                f"{one} in {names[0]}, {other} in {names[1]}."
            )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between vectors in float64, (..., C) to (...).

    Two zero vectors have cosine 1; a zero and a nonzero vector have cosine 0. NaN is kept.

    Example:
        >>> cosine(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([2.0, 0.0]))
        tensor([0.7071, 0.0000], dtype=torch.float64)
    """
    a, b = a.double(), b.double()
    lengths = a.norm(dim=-1), b.norm(dim=-1)
    product = lengths[0] * lengths[1]
    equal = (lengths[0] == lengths[1]).double()
    return torch.where(product == 0, equal, (a * b).sum(-1) / product).clamp(-1, 1)


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the base-2 divergence of histograms in [0, 1], (..., B) counts to (...).

    NaN where a histogram is empty.

    Example:
        >>> jensen_shannon(np.array([[1, 1, 0], [1, 0, 0]]), np.array([[2, 2, 0], [0, 3, 3]]))
        array([0., 1.])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = (x / x.sum(axis=-1, keepdims=True) for x in (a, b))
        middle = (p + q) / 2
        # A zero share contributes nothing; its logarithm is not a number.
        parts = [np.where(x == 0, 0, x * np.log2(x / middle)) for x in (p, q)]
    return np.clip(sum(parts).sum(axis=-1) / 2, 0, 1)  # type: ignore[union-attr]


class ImageCosine:
    """Cosine between two networks' gates, averaged over images batch by batch.

    Args:
        channels: Number of channels of each layer.
        device: Device of the sums; it must support float64.
    """

    def __init__(self, channels: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.channels = tuple(channels)
        self._sums = torch.zeros(len(self.channels), dtype=torch.float64, device=device)
        self._images = torch.zeros(len(self.channels), dtype=torch.float64)

    def update(
        self, first: Sequence[Sequence[Tensor]], second: Sequence[Sequence[Tensor]], size: int
    ) -> None:
        """Add the gates of a batch of ``size`` images, by layer and call."""
        for layer, calls in enumerate(zip(first, second, strict=True)):
            if all(calls):
                both = [[call.to(self._sums.device) for call in each] for each in calls]
                a, b = (per_sample(each, self.channels[layer], size) for each in both)
                self._sums[layer] += cosine(a, b).sum()
                self._images[layer] += size

    def compute(self) -> np.ndarray:
        """Return the mean of each layer; NaN if its gate was never executed."""
        return (self._sums.cpu() / self._images).numpy()


def drift_of(
    first: ExcitationSummary, second: ExcitationSummary, image_cosine: np.ndarray
) -> list[Drift]:
    """Return the drift of each layer, from statistics over the same images.

    Args:
        first: Statistics of one network.
        second: Statistics of the other network, with the same layers and bins.
        image_cosine: Image cosine of each layer, (L,).
    """
    divergence = jensen_shannon(first.histogram(), second.histogram())
    means = [torch.from_numpy(summary.mean()) for summary in (first, second)]
    return [
        Drift(
            name,
            first.channels[layer],
            float(cosine(*(mean[first.of(layer)] for mean in means))),
            float(image_cosine[layer]),
            float(divergence[layer]),
        )
        for layer, name in enumerate(first.layers)
    ]
