"""Mean gates per channel for a few classes and layers, as in the paper's Figures 6 and 7."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.summary import ExcitationSummary

__all__ = ["curve_arrays", "find_layers", "select_layers"]

PANELS = 6  # maximum number of layers if none are chosen


def find_layers(names: Sequence[str], given: Sequence[str | int] | None) -> list[int]:
    """Return the indices of the given layers.

    Args:
        names: Names of all layers.
        given: Names or indices from 0. None selects up to six layers, evenly spaced.

    Raises:
        ValueError: If a layer does not exist, or the list is empty.
    """
    if given is None:
        return evenly(len(names), PANELS)
    if not given or isinstance(given, str):
        raise ValueError(f"`layers` (={given!r}) must be a list of at least one layer.")
    return [_find(names, each) for each in given]


def select_layers(names: Sequence[str], given: Sequence[str | int] | None) -> list[int]:
    """Return the indices of the given layers in order of depth, each once; None selects all.

    Raises:
        ValueError: If a layer does not exist.
    """
    return list(range(len(names))) if given is None else sorted({*find_layers(names, given)})


def _find(names: Sequence[str], given: str | int) -> int:
    if isinstance(given, int) and 0 <= given < len(names):
        return given
    # The name in the network is as good as that in the module around it.
    for wanted in (given, f"backbone.{given}"):
        if wanted in names:
            return list(names).index(str(wanted))
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5) or names[:3]
    raise ValueError(
        f"`layers`: no layer {given!r} among the {len(names)}. Closest names: {', '.join(near)}."
    )


def curve_arrays(
    summary: ExcitationSummary,
    names: Mapping[int, str],
    *,
    layers: Sequence[str | int] | None = None,
    channels: int = 50,
) -> dict[str, Any]:
    """Return the data of the curves, for T channels of the layers and K classes.

    Args:
        summary: Statistics that include the given classes.
        names: Class names by label.
        layers: Layers to include; see :func:`find_layers`.
        channels: Maximum number of channels per layer, evenly spaced.

    Returns:
        ``layers`` and ``channels``, (T,): the layer's name and the index of the channel in it.
        ``labels``, ``names`` and ``samples``, (K,). ``means`` and ``stds``, (K, T).
        ``mean_of_all`` and ``std_of_all``, (T,). NaN where there are no samples.

    Raises:
        ValueError: If a layer does not exist.
    """
    chosen = find_layers(summary.layers, layers)
    index = [evenly(summary.channels[layer], channels) for layer in chosen]
    columns = np.concatenate(
        [summary.of(layer).start + np.array(at) for layer, at in zip(chosen, index, strict=True)]
    )
    empty = np.empty((0, len(columns)))
    return {
        "layers": np.repeat([summary.layers[layer] for layer in chosen], [len(at) for at in index]),
        "channels": np.concatenate(index),
        "labels": np.array(list(names), dtype=np.int64),
        "names": np.array(list(names.values()), dtype=np.str_),
        "samples": np.array([summary.class_samples(label) for label in names], dtype=np.int64),
        "means": np.stack([summary.mean(label)[columns] for label in names]) if names else empty,
        "stds": np.stack([summary.std(label)[columns] for label in names]) if names else empty,
        "mean_of_all": summary.mean()[columns],
        "std_of_all": summary.std()[columns],
    }
