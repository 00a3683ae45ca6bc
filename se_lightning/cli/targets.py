"""Fitting a config to other people's targets, before anything is built.

A target that replaces one of this package does not take all of its parameters, and the primary
config gives every model and data set a few. Those are left out. What a user gave is never left out
silently.
"""

import difflib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from se_lightning.cli.command import GROUPS, Command, key_of
from se_lightning.cli.signatures import Taken, taken
from se_lightning.ranks import is_further_rank

__all__ = [
    "LINKS",
    "chosen_options",
    "compared_elsewhere",
    "fit_to_targets",
    "given_keys",
    "is_shipped",
]

log = logging.getLogger(__name__)

# What `conf/train.yaml` gives to each target of a group.
LINKS = {
    "model.num_classes": None,
    "model.in_channels": None,
    "model.optimizer": "${optimizer}",
    "model.lr_scheduler": "${lr_scheduler}",
    "data.seed": "${seed}",
}
# Parameters that are passed when a node is called; the first one of both factories, too.
_LATER = {
    "lr_scheduler": ("total_steps", "steps_per_epoch"),
    "trainer": ("callbacks", "logger"),
}
# Groups whose options change others.
_CHANGES = ("experiment", "debug")
_FACTORIES = ("optimizer", "lr_scheduler")
# Optimizers come first: importing them takes least, so that a mistake is reported soon.
_ORDER = (*_FACTORIES, "trainer", "callbacks", "logger", "data", "model", "task")


def chosen_options() -> DictConfig:
    """Return the chosen options of all groups as they are, without an experiment or overrides."""
    composed = HydraConfig.get()
    chosen = composed.runtime.choices
    lists = [
        override
        for override in Command.recorded(composed).task_overrides
        if key_of(override) in GROUPS and key_of(override) not in chosen
    ]
    names = [group for group in GROUPS if group not in _CHANGES and chosen.get(group)]
    loader = GlobalHydra.instance().config_loader()
    overrides = [*(f"{name}={chosen[name]}" for name in names), *lists]
    return loader.load_configuration(composed.job.config_name, overrides, run_mode=RunMode.RUN)


def given_keys() -> list[str]:
    """Return the keys that the command line sets."""
    return [key_of(o) for o in Command.recorded(HydraConfig.get()).task_overrides]


def compared_elsewhere() -> list[str]:
    """Return the groups whose options are compared with the data of a checkpoint."""
    return ["data"] if Command.recorded(HydraConfig.get()).takes_checkpoints_data else []


def is_shipped(group: str) -> bool:
    """Return whether the chosen option of a group is one of this package's."""
    option = HydraConfig.get().runtime.choices.get(group)
    folders = map(Path, importlib.import_module("se_lightning.conf").__path__)
    return any((folder / group / f"{option}.yaml").is_file() for folder in folders)


def fit_to_targets(cfg: DictConfig, options: DictConfig) -> None:
    """Leave out our own parameters that a target does not take.

    Those are unchanged parameters of an option whose ``_target_`` was replaced, and what the
    primary config gives to every model and data set.

    Args:
        cfg: The composed config, which is changed.
        options: The same without the user's changes, see :func:`chosen_options`.

    Raises:
        ValueError: If a target does not take other parameters, or needs more; all are named.
    """
    given = given_keys()
    plain: Any = OmegaConf.to_container(cfg)
    before: Any = OmegaConf.to_container(options)
    elsewhere = compared_elsewhere()
    for group in (each for each in _ORDER if each not in elsewhere):
        for path, node in _nodes(plain.get(group), group):
            found = taken(node["_target_"])
            if found is None:
                continue
            option = _at(before, path)
            ours = {
                key
                for key, value in node.items()
                if not _is_hydras(key)
                and f"{path}.{key}" not in given
                and _is_ours(path, key, value, node, option)
            }
            _refuse(path, node, found, ours)
            _leave_out(cfg, path, node, found, ours)
    model = plain.get("model") or {}
    for group in _FACTORIES:
        if group in model and group not in cfg.model:
            _refuse_unread(group, model["_target_"], given)


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the content of each node with a ``_target_``."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("_target_"), str):
        yield path, node
    if node.get("_recursive_", True):  # otherwise the target calls the nodes below itself
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}")


def _at(node: Any, path: str) -> dict[str, Any]:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _is_ours(path: str, key: str, value: Any, node: dict[str, Any], option: dict[str, Any]) -> bool:
    name = f"{path}.{key}"
    if name in LINKS and value == LINKS[name]:
        return True
    replaced = option.get("_target_") != node["_target_"]
    return replaced and key in option and option[key] == value


def _refuse(path: str, node: dict[str, Any], found: Taken, ours: set[str]) -> None:
    """Refuse what a target does not take, and ask for what it needs."""
    target, values = node["_target_"], [key for key in node if not _is_hydras(key)]
    wrong = [key for key in values if key not in (*found.names, *ours)]
    if wrong and found.refuses:
        near = (match for key in wrong for match in difflib.get_close_matches(key, found.names, 1))
        meant = [f"`{path}.{name}`" for name in near]
        advice = f"Did you mean {', '.join(meant)}? " if meant else ""
        raise ValueError(
            f"{path}: {target} does not take {_listed(wrong)}. {advice}It takes "
            f"{', '.join(found.names) or 'nothing'}."
        )
    later: tuple[str, ...] = _LATER.get(path, ())
    if path in _FACTORIES:
        later += found.required[:1]
    elif node.get("_partial_") or node.get("_args_"):
        return
    missing = [name for name in found.required if name not in (*values, *later)]
    if missing:
        ways = " ".join(f"+{path}.{name}=..." for name in missing)
        raise ValueError(f"{path}: {target} needs {_listed(missing)}: {ways}")


def _leave_out(
    cfg: DictConfig, path: str, node: dict[str, Any], found: Taken, ours: set[str]
) -> None:
    dropped = [key for key in node if key in ours and key not in found.names and not found.passes]
    if not dropped:
        return
    with open_dict(cfg):
        for key in dropped:
            del OmegaConf.select(cfg, path)[key]
    kept = [f"{key}={node[key]}" for key in node if key in ours and key in found.names]
    replaced = [key for key in dropped if f"{path}.{key}" not in LINKS]
    if replaced and not is_further_rank():
        also = f", and keeps {', '.join(kept)}" if kept else ""
        log.info("%s: %s does not take %s%s.", path, node["_target_"], ", ".join(dropped), also)


def _refuse_unread(group: str, target: str, given: list[str]) -> None:
    """Refuse options of an optimizer or a schedule that no model reads."""
    unread = [key for key in given if key == group or key.startswith(f"{group}.")]
    if unread:
        raise ValueError(
            f"`{unread[0]}` has no effect: {target} does not take `{group}`. Leave it out, or add "
            f"the parameter `{group}` to that class."
        )


def _is_hydras(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
