"""Advice for errors whose message comes from Hydra or the operating system."""

import difflib
import re

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from se_lightning.cli.command import GROUPS, Command, key_of
from se_lightning.cli.targets import LINKS

__all__ = ["hint", "reworded"]

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
        return _SEARCH if str(error.missing_cfg_file).startswith("hydra/sweeper/") else ""
    missing = re.match(r"Could not override '([^'@]+)'", str(error))
    return _nearest_key(missing[1], command) if missing else ""


def _nearest_key(missing: str, command: Command) -> str:
    """Return the nearest key of the chosen options, or else the keys of the group."""
    choices = [o for o in command.overrides if key_of(o) in GROUPS and "," not in o]
    try:
        composed = Command().compose(choices)
    except HydraException:
        return ""  # an option from the user's config folder
    group, _, key = missing.rpartition(".")
    node = composed if not group else OmegaConf.select(composed, group)
    keys = map(str, node) if isinstance(node, DictConfig) else ()
    known = [name for name in keys if not name.startswith("_")]
    known.sort(key=lambda name: f"{group}.{name}" in LINKS)  # those of every option come last
    prefix = f"{group}." if group else ""
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"\nDid you mean `{prefix}{near[0]}`?"
    return f"\n`{group}` has: {', '.join(known)}." if known and group else ""
