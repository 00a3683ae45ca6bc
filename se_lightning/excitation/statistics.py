"""Counts and moments of the gates, accumulated on the device."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.excitation.taps import per_sample

__all__ = ["ExcitationStatistics"]


def _sum_over_ranks(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Sum in place instead of gathering, which would hold the copies of all ranks at once."""
    total = tensor.clone()
    torch.distributed.all_reduce(total, group=group)
    return [total]


class ExcitationStatistics(Metric):
    """Counts of the gates in fixed bins, by layer and channel, and their moments by class.

    Bins are half-open except the last, which includes the upper end. NaN and values out of range
    have separate counts. All counts and sums are in one float64 tensor (integers are exact up to
    2^53), which is reduced over ranks once. Nothing synchronizes with the device before
    :meth:`summary`.

    Args:
        layers: Names of the L layers.
        channels: Number of channels of each layer.
        hidden: Number of hidden units of each layer; 0 does not record them.
        bins: Number of bins, B.
        lower: Lower end of the bins.
        upper: Upper end of the bins.
        classes: Distinct labels whose moments are kept separately.

    Raises:
        ValueError: If `bins` is below 1, or `classes` has negative or repeated labels.

    Example:
        >>> statistics = ExcitationStatistics(["se"], [1], bins=4, classes=[7])
        >>> gates = torch.tensor([0.25, 1.0, float("nan"), 2.0]).view(4, 1)
        >>> statistics.update([[gates]], labels=torch.tensor([7, 7, 3, 3]))
        >>> summary = statistics.summary()
        >>> summary.histogram().tolist(), summary.mean(7).tolist()
        ([[0, 1, 0, 1, 1, 1]], [0.625])
    """

    full_state_update = False
    totals: Tensor

    def __init__(
        self,
        layers: Sequence[str],
        channels: Sequence[int],
        hidden: Sequence[int] = (),
        *,
        bins: int = 64,
        lower: float = 0.0,
        upper: float = 1.0,
        classes: Sequence[int] = (),
    ) -> None:
        super().__init__(dist_sync_fn=_sum_over_ranks)
        if bins < 1:
            raise ValueError(f"`bins` (={bins}) must be at least 1.")
        if any(label < 0 for label in classes) or len(set(classes)) < len(classes):
            raise ValueError(f"`classes` (={list(classes)}) must be distinct labels of at least 0.")
        self.layers, self.channels = tuple(layers), tuple(channels)
        self.hidden = tuple(hidden) or (0,) * len(self.layers)
        self.bins, self.lower, self.upper = bins, lower, upper
        self.classes = tuple(classes)
        rows, columns = len(self.classes) + 1, sum(self.channels)
        self._shapes = [(columns, bins + 2), (rows, len(self.layers)), (rows, columns)]
        self._shapes += [(rows, columns)]
        self._shapes += [shape for width in self.hidden for shape in ((2, width), (width, width))]
        # Row of each label in the tables; labels that were not chosen share the last row.
        self._row_of_label = torch.full((max(self.classes, default=0) + 2,), rows - 1)
        self._row_of_label[list(self.classes)] = torch.arange(rows - 1)
        self._kept: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}
        size = sum(a * b for a, b in self._shapes)
        self.add_state("totals", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        gates: Sequence[Sequence[Tensor]],
        hidden: Sequence[Sequence[Tensor]] = (),
        labels: Tensor | None = None,
    ) -> None:
        """Add a batch of N samples.

        Args:
            gates: Gate outputs in this batch by layer and call: (N, C, 1, 1), (N, C), (N, C, H, W)
                or (N, 1, H, W). If a sample has several calls or rows (the frames of a video), all
                values are counted, and their mean enters the moments.
            hidden: Activations of the hidden units by layer and call.
            labels: Class labels, (N,), integers. None: samples count toward no chosen class.

        Raises:
            ValueError: If the number of rows is not a multiple of the number of labels.
        """
        counts, samples, sums, squares, *units = self._parts(self.totals)
        here = tuple(layer for layer, calls in enumerate(gates) if calls)
        if not here:
            return
        size = len(gates[here[0]][0]) if labels is None else len(labels)
        if not size:
            return  # a rank may have no samples in the last batch
        calls = [[call.to(self.totals.device) for call in gates[layer]] for layer in here]
        self._check_rows(here, calls, size)
        columns, present = self._places(here)
        self._count(counts, here, calls, columns)
        means = [
            per_sample(each, self.channels[k], size) for k, each in zip(here, calls, strict=True)
        ]
        row, values = self._rows(labels, size), torch.cat(means, 1).double()
        samples.index_add_(0, row, present.expand(size, -1))
        for table, moment in ((sums, values), (squares, values.square())):
            if len(here) < len(self.layers):
                full = moment.new_zeros(size, sum(self.channels))
                moment = full.index_copy_(1, columns, moment)
            table.index_add_(0, row, moment)
        for layer, activations in enumerate(hidden):
            if activations and self.hidden[layer]:
                self._add_hidden(units[2 * layer], units[2 * layer + 1], activations, layer, size)

    def _check_rows(
        self, here: Sequence[int], calls: Sequence[Sequence[Tensor]], size: int
    ) -> None:
        for layer, each in zip(here, calls, strict=True):
            for call in each:
                if len(call) % size:
                    raise ValueError(
                        f"{self.layers[layer]}: the number of gate rows ({len(call)}) must be a "
                        f"multiple of the number of samples ({size})."
                    )

    def _count(
        self,
        counts: Tensor,
        here: Sequence[int],
        calls: Sequence[Sequence[Tensor]],
        columns: Tensor,
    ) -> None:
        flat = [[call.float().flatten(1) for call in each] for each in calls]
        shapes = {
            (len(each), *each[0].shape, self.channels[k])
            for k, each in zip(here, flat, strict=True)
        }
        if (
            all(n == 1 and c == width for n, _, c, width in shapes)
            and len({s[1] for s in shapes}) == 1
        ):
            # No gate varies over space, so all layers are counted at once.
            self._scatter(counts, torch.cat([each[0] for each in flat], 1)[..., None], columns)
            return
        start = 0
        for layer, each in zip(here, flat, strict=True):
            channels = columns[start : start + self.channels[layer]]
            start += self.channels[layer]
            for call in each:
                self._scatter(counts, call.view(len(call), len(channels), -1), channels)

    def _scatter(self, counts: Tensor, values: Tensor, channels: Tensor) -> None:
        """Count values, (N, C, S), of the channels with these indices."""
        position = (values - self.lower) * (self.bins / (self.upper - self.lower))
        bins = position.clamp(0, self.bins - 1).long()
        outside = (values < self.lower) | (values > self.upper)
        bins = torch.where(outside, self.bins + 1, bins)
        bins = torch.where(values.isnan(), self.bins, bins)
        index = bins + channels[:, None] * (self.bins + 2)
        one = torch.ones((), dtype=counts.dtype, device=counts.device)
        counts.view(-1).scatter_add_(0, index.flatten(), one.expand(index.numel()))

    def _add_hidden(
        self, vectors: Tensor, products: Tensor, calls: Sequence[Tensor], layer: int, size: int
    ) -> None:
        calls = [call.to(vectors.device) for call in calls]
        values = per_sample(calls, self.hidden[layer], size).double()
        alive = per_sample([call != 0 for call in calls], self.hidden[layer], size) > 0
        vectors += torch.stack([alive.double().sum(0), values.sum(0)])
        products += values.T @ values

    def _places(self, here: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the layers' channel indices and a mask over all layers, cached on the device.

        Copying them in every batch would synchronize with the device.
        """
        device = self.totals.device
        if (here, device) not in self._kept:
            starts = [sum(self.channels[:layer]) for layer in here]
            ranges = [
                torch.arange(start, start + self.channels[layer])
                for layer, start in zip(here, starts, strict=True)
            ]
            present = torch.zeros(len(self.layers), dtype=torch.float64)
            present[list(here)] = 1
            self._kept[here, device] = (torch.cat(ranges).to(device), present.to(device))
        return self._kept[here, device]

    def _rows(self, labels: Tensor | None, size: int) -> Tensor:
        table = self._row_of_label = self._row_of_label.to(self.totals.device)
        if labels is None:
            return table[-1].expand(size)
        # Other labels, including negative ones, use the last entry of the table.
        index = labels.to(table.device)
        return table[torch.where(index < 0, len(table) - 1, index.clamp(max=len(table) - 1))]

    def _parts(self, totals: Tensor) -> list[Tensor]:
        parts = totals.split([a * b for a, b in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def on(self, device: torch.device) -> Self:
        """Move to a device, or to the CPU instead of an Apple GPU, which has no float64."""
        return self.to("cpu" if device.type == "mps" else device)

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        return self.totals.numel() * self.totals.itemsize

    def compute(self) -> Tensor:
        """Return the state, summed over ranks, as one tensor; see :meth:`summary`."""
        return self.totals

    def summary(self) -> ExcitationSummary:
        """Return the statistics, summed over ranks. All ranks must call this."""
        parts = self._parts(self.compute().to("cpu", copy=True))
        counts, samples, sums, squares, *units = (part.numpy() for part in parts)
        return ExcitationSummary(
            layers=self.layers,
            channels=self.channels,
            classes=self.classes,
            edges=np.linspace(self.lower, self.upper, self.bins + 1),
            counts=counts.astype(np.int64),
            samples=samples.astype(np.int64),
            sums=sums,
            squares=squares,
            active=tuple(vectors[0].astype(np.int64) for vectors in units[::2]),
            hidden_sums=tuple(vectors[1] for vectors in units[::2]),
            hidden_products=tuple(units[1::2]),
        )
