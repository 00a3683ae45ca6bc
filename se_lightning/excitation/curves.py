"""Mean gates channel by channel, for a few classes at a few depths: the paper's Figures 6 and 7."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.summary import ExcitationSummary

__all__ = ["curve_arrays", "find_layers", "select_layers"]

# Of layers that nobody has chosen, at the most.
PANELS = 6


def find_layers(names: Sequence[str], given: Sequence[str | int] | None) -> list[int]:
    """Return the indices of the given layers; None is the first, the last, and up to four between.

    Args:
        names: of all layers.
        given: names, or indices from 0 on.

    Raises:
        ValueError: naming the layer that does not exist, and those near it.
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
    if given in names:
        return list(names).index(str(given))
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5) or names[:3]
    raise ValueError(
        f"`layers`: there is no layer {given!r} among the {len(names)}; near it: {', '.join(near)}."
    )


def curve_arrays(
    summary: ExcitationSummary,
    names: Mapping[int, str],
    *,
    layers: Sequence[str | int] | None = None,
    channels: int = 50,
) -> dict[str, Any]:
    """Return what the curves show: T channels, those of a layer after the other's; K classes.

    Args:
        summary: with these classes among the chosen.
        names: of the classes, by label.
        layers: as :func:`find_layers` takes them.
        channels: evenly sampled of each layer; all where there are fewer.

    Returns:
        ``layers`` and ``channels`` (T,), the layer's name and the index in it; ``labels``,
        ``names`` and ``samples`` (K,); ``means`` and ``stds`` (K, T); ``mean_of_all`` and
        ``std_of_all`` (T,). NaN where there is no sample.

    Raises:
        ValueError: if there is no such layer.
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
