"""Advice for errors whose message comes from Hydra or the operating system."""

import os
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from se_lightning.cli.command import GROUPS, Command, key_of
from se_lightning.cli.targets import LINKS

__all__ = ["hint", "nearest_key", "reworded"]

# Names that other programs have for keys of this one.
_USUAL = {
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "optimizer.lr",
    "pretrained": "model.weights",
    "workers": "data.num_workers",
}
_SIMILAR = 0.6  # as in difflib
_DEEPER = 0.85

_SEARCH = (
    "\nTo search with optuna, leave it out: "
    'python -m se_lightning -m jobs.trials=20 "model.ratio=choice(4,8,16)"'
)


def reworded(error: Exception) -> Exception:
    """Replace an error that Hydra does not handle while composing with one about the config."""
    if isinstance(error, RecursionError):
        return ValueError("A config includes itself: check its `defaults` and its ${...}.")
    if isinstance(error, TypeError):
        return ValueError(f"Hydra can't compose a config from these arguments: {error}")
    return error


def hint(error: Exception, command: Command) -> str:
    """Return a line of advice to append to an error message; empty if there is none."""
    if isinstance(error, OSError) and error.filename:
        return "\nRuns are written there: choose a folder with hydra.run.dir=DIR."
    if isinstance(error, MissingConfigException):
        return _nearest_option(str(error.missing_cfg_file), command)
    missing = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)'", str(error))
    return _nearest_in(missing[1], command) if missing else ""


def _nearest_option(missing: str, command: Command) -> str:
    if missing.startswith("hydra/sweeper/"):
        return _SEARCH
    group, _, option = missing.rpartition("/")
    near = _nearest(option, command.loader().get_group_options(group)) if group else None
    return f"\nDid you mean `{group}={near}`?" if near else ""


def _nearest_in(missing: str, command: Command) -> str:
    """Return the nearest key of the chosen options, or else the keys of the group."""
    choices = [o for o in command.overrides if key_of(o) in GROUPS and "," not in o]
    try:
        composed = Command(command.flags).compose(choices)
    except (HydraException, OmegaConfBaseException):
        return ""  # their error is reported
    top = missing.partition(".")[0]
    if top in GROUPS and top not in composed:
        options = command.loader().get_group_options(top)
        return f"\nChoose one of its options, too: {', '.join(f'{top}={o}' for o in options)}."
    near = nearest_key(missing, composed)
    if near:
        return f"\nDid you mean `{near}`?"
    group = missing.rpartition(".")[0]
    node = OmegaConf.select(composed, group) if group else None
    known = list(_keys(node, deep=False)) if isinstance(node, DictConfig) else []
    known.sort(key=lambda name: f"{group}.{name}" in LINKS)  # those of every option come last
    return f"\n`{group}` has: {', '.join(known)}." if known else ""


def nearest_key(missing: str, config: DictConfig) -> str | None:
    """Return the key of a config that is most like a missing one: in its group, else anywhere.

    Example:
        >>> config = OmegaConf.create({"seed": 0, "optimizer": {"lr": 0.1, "momentum": 0.9}})
        >>> [nearest_key(key, config) for key in ("sead", "optimzer.lr", "lr", "optimizer.xyz")]
        ['seed', 'optimizer.lr', 'optimizer.lr', None]
    """
    group, _, name = missing.rpartition(".")
    node = OmegaConf.select(config, group) if group else None
    if isinstance(node, DictConfig):
        inside = _nearest(name, list(_keys(node, deep=False)))
        return f"{group}.{inside}" if inside else None
    empty = _keys(config)
    if _USUAL.get(name) in empty:
        return _USUAL[name]
    known = sorted(empty, key=lambda key: (empty[key], key.count(".")))
    by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
    whole, leaf = _nearest(missing, known), by_name.get(_nearest(name, list(by_name)[::-1]) or "")
    if leaf is None:
        return whole
    # Of two, a key that is not deep inside is more likely.
    score = _likeness(name, leaf.rpartition(".")[2]) * _DEEPER ** (leaf.count(".") - 1)
    return leaf if score > _likeness(missing, whole) else whole


def _likeness(name: str, other: str | None) -> float:
    return SequenceMatcher(None, name, other or "").ratio()


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the most similar name; of several, that with the same beginning, then the first."""

    def score(each: str) -> tuple[float, int]:
        return _likeness(name, each), len(os.path.commonprefix((name, each)))  # noqa: RUF071

    best = max(known, key=score, default=None)
    return best if _likeness(name, best) >= _SIMILAR else None


def _keys(node: DictConfig, prefix: str = "", *, deep: bool = True) -> dict[str, bool]:
    """Return the dotted keys below a node, and whether each is null."""
    found: dict[str, bool] = {}
    for key in map(str, node):
        inner: Any = node._get_node(key)
        if key.startswith("_") or key == "hydra" or inner is None:
            continue
        found[f"{prefix}{key}"] = inner._is_none()
        # The node behind an interpolation has a place of its own.
        plain = isinstance(inner, DictConfig) and not inner._is_none()
        if deep and plain and not inner._is_interpolation():
            found |= _keys(inner, f"{prefix}{key}.")
    return found
