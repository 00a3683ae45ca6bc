"""How far the gates of two networks are from each other, layer by layer."""

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
    """How far apart two networks' gates of one layer are.

    The cosines hold channel against channel: they say something of a network before and after
    some training, and little of two that began with other weights. The divergence does not.

    Attributes:
        layer: module path of the SE module.
        channels: C.
        cosine: between the two mean gates (C,) over all images; 1: the same up to a factor.
        image_cosine: mean over images of that between the two gates (C,) of one image.
        js: Jensen-Shannon divergence of the two histograms, base 2; 0: the same values, 1: no
            value in common.
    """

    layer: str
    channels: int
    cosine: float
    image_cosine: float
    js: float


def check_comparable(first: Taps, second: Taps, names: Sequence[str]) -> None:
    """Check that two networks have the same gates.

    Raises:
        ValueError: naming the first layer that differs.
    """
    ours, theirs = (
        [f"{layer} ({channels} channels)" for layer, channels in zip(t.layers, t.channels)]  # noqa: B905
        for t in (first, second)
    )
    for one, other in zip_longest(ours, theirs, fillvalue="no further gate"):
        if one != other:
            raise ValueError(
                "Only networks with the same gates can be compared. The first that differs: "
                f"{one} in {names[0]}, {other} in {names[1]}."
            )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between vectors, (..., C) to (...), in float64.

    Two vectors that are zero have cosine 1, one that is zero with one that is not, 0; NaN stays.

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
    """Return the divergence of histograms, (..., B) counts to (...): base 2, in [0, 1].

    NaN where a histogram is empty.

    Example:
        >>> jensen_shannon(np.array([[1, 1, 0], [1, 0, 0]]), np.array([[2, 2, 0], [0, 3, 3]]))
        array([0., 1.])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = (x / x.sum(axis=-1, keepdims=True) for x in (a, b))
        middle = (p + q) / 2
        # Where a share is 0, so is its part in the sum.
        parts = [np.where(x == 0, 0, x * np.log2(x / middle)) for x in (p, q)]
    return np.clip(sum(parts).sum(axis=-1) / 2, 0, 1)  # type: ignore[union-attr]


class ImageCosine:
    """Mean over images of the cosine between two networks' gates, batch by batch.

    Args:
        channels: of each layer.
        device: where it is counted; it must know float64.
    """

    def __init__(self, channels: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.channels = tuple(channels)
        self._sums = torch.zeros(len(self.channels), dtype=torch.float64, device=device)
        self._images = torch.zeros(len(self.channels), dtype=torch.float64)

    def update(
        self, first: Sequence[Sequence[Tensor]], second: Sequence[Sequence[Tensor]], size: int
    ) -> None:
        """Add a batch of ``size`` images: what each gate put out, by layer and call."""
        for layer, calls in enumerate(zip(first, second, strict=True)):
            if all(calls):
                both = [[call.to(self._sums.device) for call in each] for each in calls]
                a, b = (per_sample(each, self.channels[layer], size) for each in both)
                self._sums[layer] += cosine(a, b).sum()
                self._images[layer] += size

    def compute(self) -> np.ndarray:
        """Return the mean of each layer; NaN where a gate was not seen."""
        return (self._sums.cpu() / self._images).numpy()


def drift_of(
    first: ExcitationSummary, second: ExcitationSummary, image_cosine: np.ndarray
) -> list[Drift]:
    """Return how far two networks' gates are apart, from what was counted of the same images.

    Args:
        first: of one network.
        second: of the other, with the same layers and bins.
        image_cosine: of each layer.
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
