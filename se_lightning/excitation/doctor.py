"""Diagnosis of unhealthy gates: constant, dead, NaN, or never executed."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.tables import csv_table

__all__ = ["CONSTANT_STD", "Finding", "GateReport", "diagnose", "report_csv", "report_text"]

# A channel is constant if the standard deviation of its gate over the samples is below this. In
# SE-ResNet-20, initialized or trained on the digits, the most varying channel of each layer had at
# least 4e-3 if any hidden unit was alive, and 0 otherwise.
CONSTANT_STD = 1e-4
# Constant channels raise an alarm if they exceed this fraction of the layer.
MANY = 0.5


@dataclass(frozen=True)
class Finding:
    """A problem of one layer's gate.

    Attributes:
        kind: ``identity``, ``shut``, ``constant``, ``stuck``, ``all_dead``, ``dead``, ``nan`` or
            ``unseen``.
        text: Description; a duration such as "for 3 validations" may be appended.
        advice: Consequence or remedy.
        grave: Whether it raises an alarm; healthy networks have minor findings too.
        sure: Whether it is a fault when first seen, rather than only if it persists.
    """

    kind: str
    text: str
    advice: str
    grave: bool = True
    sure: bool = False


@dataclass(frozen=True)
class GateReport:
    """Condition of one layer's gate over a split.

    Attributes:
        layer: Module path.
        channels: Number of channels, C.
        samples: Number of samples; 0 if the gate was never executed.
        mean: Mean over channels and samples.
        constant_share: Fraction of channels whose standard deviation is below CONSTANT_STD.
        from_one: Largest root mean square distance of a channel from 1.
        from_zero: Largest root mean square distance of a channel from 0.
        hidden: Number of hidden units; 0 for a spatial gate, or if they were not recorded.
        dead: Number of hidden units that were 0 for every sample.
        effective_rank: Exponential of the entropy of the normalized eigenvalues of the
            pre-activations' covariance; 0 if they do not vary, NaN without hidden units.
        nan: Number of NaN values.
        findings: Problems found.
    """

    layer: str
    channels: int
    samples: int
    mean: float
    constant_share: float
    from_one: float
    from_zero: float
    hidden: int
    dead: int
    effective_rank: float
    nan: int
    findings: tuple[Finding, ...] = ()


def diagnose(
    summary: ExcitationSummary,
    expansions: Mapping[str, Tensor] | None = None,
    tolerance: float = 0.01,
) -> list[GateReport]:
    """Return a report on each layer, in the order of the summary.

    Gates that vary over space are judged by their mean over space. Healthy networks have some dead
    hidden units (about half of them at initialization), so only a layer whose units are all dead
    is a grave finding.

    Args:
        summary: Statistics of a split, with hidden units if they are to be judged.
        expansions: Weight of the gate's last layer by layer name, (C, hidden, ...). Without it, the
            effective rank is NaN.
        tolerance: Gates within this distance of 1 are an identity; within this distance of 0, shut.

    Reference:
        Roy, Vetterli. The effective rank: a measure of effective dimensionality. EUSIPCO 2007.
    """
    return [
        _of_layer(summary, layer, (expansions or {}).get(name), tolerance)
        for layer, name in enumerate(summary.layers)
    ]


def _of_layer(
    summary: ExcitationSummary, layer: int, weight: Tensor | None, tolerance: float
) -> GateReport:
    part = summary.of(layer)
    mean, std = summary.mean()[part], summary.std()[part]
    active = summary.active[layer]
    report = GateReport(
        layer=summary.layers[layer],
        channels=summary.channels[layer],
        samples=int(summary.samples[:, layer].sum()),
        mean=float(mean.mean()),
        constant_share=float((std < CONSTANT_STD).mean()),
        from_one=float(np.sqrt(std**2 + (mean - 1) ** 2).max()),
        from_zero=float(np.sqrt(std**2 + mean**2).max()),
        hidden=len(active),
        dead=int((active == 0).sum()),
        effective_rank=_effective_rank(summary, layer, weight),
        nan=int(summary.counts[part, len(summary.edges) - 1].sum()),
    )
    return replace(report, findings=tuple(_findings(report, tolerance)))


def _findings(gate: GateReport, tolerance: float) -> list[Finding]:
    if not gate.samples:
        advice = "the forward pass does not use this module; call it or remove it"
        return [Finding("unseen", "the gate is never executed", advice, sure=True)]
    found = []
    if gate.nan:
        advice = "check for a learning rate that is too high, or for overflow in half precision"
        found.append(Finding("nan", f"{gate.nan} gates are NaN", advice, sure=True))
    found += _constants(gate, tolerance)
    if gate.dead:
        every = gate.dead == gate.hidden
        which = f"all {gate.hidden}" if every else f"{gate.dead} of {gate.hidden}"
        what = f"{which} hidden units are 0 for every image"
        advice = "their weights no longer train; try a smaller ratio or learning rate"
        found.append(Finding("all_dead" if every else "dead", what, advice, grave=every))
    return found


def _constants(gate: GateReport, tolerance: float) -> list[Finding]:
    if gate.from_one <= tolerance:
        what = f"every gate within {tolerance:g} of 1"
        return [Finding("identity", what, "this block is an identity; task=fold removes it")]
    if gate.from_zero <= tolerance:
        what = f"every gate within {tolerance:g} of 0"
        return [Finding("shut", what, "this block suppresses its input")]
    if gate.constant_share == 1:
        what = f"no gate varies over the images (mean {gate.mean:.3f})"
        return [Finding("constant", what, "the gate ignores its input; task=fold removes it")]
    if gate.constant_share > 0:
        count = round(gate.constant_share * gate.channels)
        what = f"{count} of {gate.channels} gates do not vary over the images"
        grave = gate.constant_share > MANY
        return [Finding("stuck", what, "these channels are stuck at a constant", grave=grave)]
    return []


def _effective_rank(summary: ExcitationSummary, layer: int, weight: Tensor | None) -> float:
    products, samples = summary.hidden_products[layer], summary.samples[:, layer].sum()
    if weight is None or not products.size or not samples:
        return math.nan
    mean = summary.hidden_sums[layer] / samples
    covariance = products / samples - np.outer(mean, mean)
    # The variance of a constant is not exactly 0, because of rounding.
    noise = 1e-12 * np.diag(products).max() / samples
    last = weight.detach().double().cpu().reshape(len(weight), -1).numpy()
    if not (np.isfinite(covariance).all() and np.isfinite(last).all()):
        return math.nan
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.where(values > noise, values, 0))
    # W Cov W^T, (C, C), has the same nonzero eigenvalues as root^T W^T W root, (hidden, hidden).
    spectrum = np.linalg.svd(last @ root, compute_uv=False) ** 2
    if not spectrum.sum() > 0:
        return 0.0
    share = spectrum / spectrum.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


_COLUMNS = {
    "layer": "{0.layer}",
    "mean": "{0.mean:.3f}",
    "constant": "{0.constant_share:.0%}",
    "from 1": "{0.from_one:.3f}",
    "from 0": "{0.from_zero:.3f}",
    "dead": "{0.dead}/{0.hidden}",
    "rank": "{0.effective_rank:.1f}",
    "NaN": "{0.nan}",
}


def report_text(reports: Sequence[GateReport]) -> str:
    """Return an aligned table with one line per layer, ending in its findings.

    Example:
        >>> text = report_text([GateReport("se", 4, 9, 0.5, 0.0, 0.6, 0.6, 2, 0, 1.5, 0)])
        >>> print(text.splitlines()[1])
        se     0.500        0%   0.600   0.600   0/2   1.5    0  -
    """
    rows = [[*_COLUMNS, "findings"]]
    for each in reports:
        words = "; ".join(finding.text for finding in each.findings) or "-"
        cells = [form.format(each) for form in _COLUMNS.values()]
        seen = cells if each.samples else [each.layer, *"-" * (len(_COLUMNS) - 1)]
        rows.append([*seen, words])
    return "\n".join(aligned(rows, texts=(0, len(_COLUMNS))))


def aligned(rows: Sequence[Sequence[str]], texts: Collection[int] = (0,)) -> list[str]:
    """Return one line per row, with text columns aligned to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def report_csv(reports: Sequence[GateReport]) -> str:
    """Return the reports as CSV with full precision."""
    names = [name for name in GateReport.__dataclass_fields__ if name != "findings"]
    rows = []
    for each in reports:
        kinds = " ".join(finding.kind for finding in each.findings)
        words = "; ".join(finding.text for finding in each.findings)
        rows.append([*(getattr(each, name) for name in names), kinds, words])
    return csv_table([*names, "kinds", "findings"], rows)
