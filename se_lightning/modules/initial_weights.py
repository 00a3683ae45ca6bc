"""Loading the weights from which training starts, and comparing them with the data."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from se_lightning.lightning import rank_zero_info
from se_lightning.models import LoadReport, load_weights
from se_lightning.models.weights.structure import classifier_path

__all__ = ["load_initial_weights", "warn_of_other_normalization"]

# Differences that hardly change the pixels that a network sees, such as those between ImageNet and
# CIFAR: of the mean, and of the ratio of deviations.
_SHIFT, _SCALE = 0.05, 1.25


def load_initial_weights(
    network: nn.Module,
    weights: str | Mapping[str, Tensor] | None,
    *,
    use_ema: bool = True,
    freeze: str | None = None,
) -> LoadReport | None:
    """Load weights, if any, into a network and report what was loaded.

    Warns if ``freeze`` leaves a random classifier untrained.
    """
    if weights is None:
        return None
    report = load_weights(network, weights, use_ema=use_ema)
    rank_zero_info(str(report))
    if freeze == "all_but_gates" and classifier_path(network) in report.fresh:
        warnings.warn(
            "The classifier is random, because the one in the weights does not fit, and "
            "freeze=all_but_gates never trains it.",
            stacklevel=3,
        )
    return report


def warn_of_other_normalization(report: LoadReport | None, data: Any) -> None:
    """Warn if the weights expect other pixels than those of the data, if both are known.

    Args:
        report: Report of the weights; None without weights.
        data: A datamodule, perhaps with ``mean`` and ``std``, for pixels in [0, 1].
    """
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    if report is None or report.normalization is None or mean is None or std is None:
        return
    wanted = report.normalization
    here = [_mean(values) for values in (mean, std)]
    there = [_mean(values) for values in wanted]
    ratio = here[1] / there[1]
    if abs(here[0] - there[0]) <= _SHIFT and 1 / _SCALE <= ratio <= _SCALE:
        return
    warnings.warn(
        f"The weights expect images normalized with mean {_text(wanted.mean)} and std "
        f"{_text(wanted.std)}, but {type(data).__name__} normalizes them with mean {_text(mean)} "
        f"and std {_text(std)}. Give the data those of the weights, or train the whole network: "
        "until then its outputs are not those of the published network.",
        stacklevel=2,
    )


def _mean(values: float | Sequence[float]) -> float:
    listed = [float(value) for value in values] if isinstance(values, Sequence) else [values]
    return sum(listed) / len(listed)


def _text(values: float | Sequence[float]) -> str:
    listed = [float(value) for value in values] if isinstance(values, Sequence) else [values]
    shown = listed[:1] if len(set(listed)) == 1 else listed
    return ", ".join(f"{value:.3g}" for value in shown)
