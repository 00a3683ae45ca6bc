"""What ails a gate: constants, identities, dead hidden units, NaN, and gates nobody calls."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from se_lightning.excitation.summary import ExcitationSummary

__all__ = ["CONSTANT_STD", "Finding", "GateReport", "diagnose", "report_csv", "report_text"]

# A channel whose gate's standard deviation over the samples is below this does not vary. In
# SE-ResNet-20, fresh or trained on the digits, the most varying channel of each layer had 4e-3 or
# more wherever one hidden unit was alive, and 0 where none was.
CONSTANT_STD = 1e-4
# Of the channels of a layer: below it, constant ones are in the table only.
MANY = 0.5


@dataclass(frozen=True)
class Finding:
    """Something that ails a layer.

    Attributes:
        kind: ``identity``, ``shut``, ``constant``, ``stuck``, ``all_dead``, ``dead``, ``nan`` or
            ``unseen``.
        text: what it is, so that "for 3 validations" can follow.
        advice: what follows from it.
        grave: False is found in healthy nets too: it is in the table, and raises no alarm.
        sure: it is a fault at first sight, and not only if it stays.
    """

    kind: str
    text: str
    advice: str
    grave: bool = True
    sure: bool = False


@dataclass(frozen=True)
class GateReport:
    """The state of one layer's gate over a split.

    Attributes:
        layer: module path.
        channels: C.
        samples: how many; 0 of a gate that was never called.
        mean: over channels and samples.
        constant_share: fraction of the channels whose standard deviation is below CONSTANT_STD.
        from_one: the largest root mean square distance of a channel from 1.
        from_zero: likewise, from 0.
        hidden: hidden units; 0 of a spatial gate, and where they were not recorded.
        dead: of these, how many were 0 for every sample.
        effective_rank: of the covariance of the pre-activations: exp of the entropy of its
            normalised eigenvalues; 0 where they do not vary, NaN where hidden units are unknown.
        nan: how many values were NaN.
        findings: what is wrong.
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
    """Report on each layer.

    A gate that varies over space is judged by its mean over space. Some dead hidden units are
    found in healthy networks (fresh ones have half of them), so that only a layer whose units are
    all dead is a grave finding.

    Args:
        summary: of a split; with hidden units, where these are to be judged.
        expansions: by layer, the weight of the gate's last layer, (C, hidden, ...); of those not
            given, the effective rank is NaN.
        tolerance: gates as near to 1 are an identity, as near to 0 shut.

    Returns:
        A report a layer, in the order of the summary.

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
    numbers = {
        "layer": summary.layers[layer],
        "channels": summary.channels[layer],
        "samples": int(summary.samples[:, layer].sum()),
        "mean": float(mean.mean()),
        "constant_share": float((std < CONSTANT_STD).mean()),
        "from_one": float(np.sqrt(std**2 + (mean - 1) ** 2).max()),
        "from_zero": float(np.sqrt(std**2 + mean**2).max()),
        "hidden": len(active),
        "dead": int((active == 0).sum()),
        "effective_rank": _effective_rank(summary, layer, weight),
        "nan": int(summary.counts[part, len(summary.edges) - 1].sum()),
    }
    bare = GateReport(**numbers)  # type: ignore[arg-type]
    return GateReport(**numbers, findings=tuple(_findings(bare, tolerance)))  # type: ignore[arg-type]


def _findings(gate: GateReport, tolerance: float) -> list[Finding]:
    if not gate.samples:
        return [
            Finding(
                "unseen",
                "the gate is never called",
                "the forward pass does not use this module; call it, or take it out",
                sure=True,
            )
        ]
    found = []
    if gate.nan:
        advice = "look for a learning rate too high, or for half precision that overflows"
        found.append(Finding("nan", f"{gate.nan} gates are NaN", advice, sure=True))
    found += _constants(gate, tolerance)
    if gate.dead:
        every = gate.dead == gate.hidden
        what = f"{gate.dead} of {gate.hidden} hidden units are 0 for every image"
        advice = "its gate is a constant; a smaller ratio or learning rate leaves it more room"
        if every:
            what = f"all {gate.hidden} hidden units are 0 for every image"
        found.append(Finding("all_dead" if every else "dead", what, advice, grave=every))
    return found


def _constants(gate: GateReport, tolerance: float) -> list[Finding]:
    if gate.from_one <= tolerance:
        what = f"every gate within {tolerance:g} of 1"
        return [Finding("identity", what, "this block is an identity; task=fold takes it out")]
    if gate.from_zero <= tolerance:
        what = f"every gate within {tolerance:g} of 0"
        return [Finding("shut", what, "this block passes nothing on")]
    if gate.constant_share == 1:
        what = f"no gate varies over the images, around {gate.mean:.3f}"
        return [Finding("constant", what, "the gate ignores its input; task=fold takes it out")]
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
    # What is left of a constant's variance is rounding.
    noise = 1e-12 * np.diag(products).max() / samples
    last = weight.detach().double().cpu().reshape(len(weight), -1).numpy()
    if not (np.isfinite(covariance).all() and np.isfinite(last).all()):
        return math.nan
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.where(values > noise, values, 0))
    # (C, C) W Cov W^T has the nonzero eigenvalues of (hidden, hidden) root^T W^T W root.
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
    """Return an aligned table, a line a layer, with what was found behind it.

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
    """Return the same as CSV, all digits given."""
    names = [name for name in GateReport.__dataclass_fields__ if name != "findings"]
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow([*names, "kinds", "findings"])
    for each in reports:
        kinds = " ".join(finding.kind for finding in each.findings)
        words = "; ".join(finding.text for finding in each.findings)
        rows.writerow([*(getattr(each, name) for name in names), kinds, words])
    return file.getvalue()
