"""Checking a config against the signatures that it is passed to, before anything is built.

Otherwise text in place of a number fails deep inside a library, or counts as true. The signature is
the schema.
"""

import math
import typing
from collections import abc
from collections.abc import Collection, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from se_lightning.cli.command import GROUPS
from se_lightning.cli.hints import nearest_key
from se_lightning.cli.signatures import hints
from se_lightning.cli.targets import compared_elsewhere, is_shipped

__all__ = ["FROM_DATA", "VALUES", "check_arguments", "check_values", "make", "refuse_unknown_keys"]

# Top-level keys that are not groups.
VALUES = (
    "seed",
    "ckpt_path",
    "resume",
    "output_dir",
    "tags",
    "train",
    "test",
    "trust",
    "checkpoint",
    "on_nonfinite",
    "on_oom",
    "jobs",
)
# Groups to which users add entries.
_OPEN = ("callbacks", "logger", "experiment")
# Nodes that must have a `_target_`.
_NODES = ("task", "data", "model", "optimizer", "lr_scheduler", "trainer")
_ON_OOM = ("stop", "accumulate")
# Parameters of a model for which null means the value of the data set.
FROM_DATA = ("num_classes", "in_channels", "image_size")
# Words that a run replaces before the call.
_REPLACED = {"trainer.precision": "auto"}
# Lightning accepts smaller values, and divides by them or reverses the gradients.
_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}
_MAX_SEED = 2**32 - 1  # NumPy's
_TOO_LARGE = 2**63  # torch's integers have 64 bits
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    NoneType: "null",
}
_LISTS = (list, tuple, set, abc.Sequence, abc.Iterable, abc.Collection)
_MAPPINGS = (dict, abc.Mapping)


def check_values(cfg: DictConfig) -> None:
    """Check the values of a composed config against the parameters that they are passed to.

    An annotation that is not a plain type (e.g. a class of another library) is not checked.

    Raises:
        ValueError: If a value does not have the type of its parameter, or is out of range.
    """
    if not _is(cfg.get("seed"), int) or not 0 <= cfg.seed <= _MAX_SEED:
        raise ValueError(
            f"`seed` (={cfg.get('seed')!r}) must be a whole number from 0 to {_MAX_SEED}."
        )
    if not _fits(_plain(cfg.get("ckpt_path")), str | list[str] | None):
        raise ValueError(f"`ckpt_path` (={cfg.ckpt_path!r}) must be the path of a checkpoint.")
    if not _fits(_plain(cfg.get("tags")), list[str] | None):
        raise ValueError(f"`tags` (={cfg.tags!r}) must be a list of words: tags=[first,second].")
    if not _fits(cfg.get("trust"), bool | None):
        raise ValueError(f"`trust` (={cfg.trust!r}) must be true, false or null.")
    if cfg.get("on_oom") not in _ON_OOM:
        raise ValueError(f"`on_oom` (={cfg.get('on_oom')!r}) must be one of {', '.join(_ON_OOM)}.")
    for name in (*_NODES, *(["compile"] if cfg.get("compile") is not None else [])):
        node = cfg.get(name)
        target = node.get("_target_") if isinstance(node, DictConfig) else node
        if not isinstance(target, str) or "." not in target:
            raise ValueError(
                f"`{name}._target_` (={target!r}) must name a class or function: "
                "package.module.Name."
            )
    for key, target, values in _calls(cfg):
        check_arguments(key, target, values)
    for name, least in _LEAST.items():
        value = cfg.trainer.get(name)
        if value is not None and value < least:
            raise ValueError(f"trainer: `{name}` (={value}) must be at least {least}.")
    if cfg.trainer.get("val_check_interval") == 0:
        raise ValueError(
            "trainer: `val_check_interval` (=0) must be above 0; null validates each epoch."
        )


def check_arguments(key: str, target: str, values: dict[str, Any]) -> None:
    """Check the arguments of one call; ``key`` is its place in the config.

    Raises:
        ValueError: If a value does not have the type of its parameter.
    """
    wanted = hints(target)
    for name, value in values.items():
        hint = wanted.get(name, Any)
        filled = value is None and key.partition(".")[0] == "model" and name in FROM_DATA
        word = _REPLACED.get(f"{key}.{name}")
        replaced = word is not None and value == word
        if not (filled or replaced or _fits(value, hint)):
            words = f"{_words(hint)}, or {word}" if word else _words(hint)
            raise ValueError(f"{key}: `{name}` (={value!r}) must be {words}.")


def make(node: DictConfig, name: str, kind: type, **more: Any) -> Any:
    """Instantiate a node of the config.

    Args:
        node: A node with a ``_target_``.
        name: Key of the node.
        kind: The type that the result must have.
        **more: Arguments that are not in the config.

    Raises:
        ValueError: If the result has another type.
    """
    made = instantiate(node, _convert_="all", **more)
    if not isinstance(made, kind):
        target = node.get("_target_") if isinstance(node, DictConfig) else node
        raise ValueError(
            f"`{name}._target_` (={target!r}) returns a {type(made).__name__}, but must return a "
            f"{kind.__name__}."
        )
    return made


def _calls(node: DictConfig, name: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the key, the target and the values of each node with a ``_target_``."""
    values = {}
    for key in map(str, node):
        # The node behind an interpolation is checked in its own place.
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig) and ("_target_" in value or "_target_" not in node):
            if not OmegaConf.is_interpolation(node, key):
                yield from _calls(value, f"{name}.{key}".lstrip("."))
        elif not (key.startswith("_") and key.endswith("_")):
            values[key] = _plain(value)
    if isinstance(node.get("_target_"), str):
        yield name, node["_target_"], values


def _plain(value: Any) -> Any:
    """Return lists and mappings as plain Python objects."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _kinds(hint: Any) -> list[Any]:
    """Return the plain types in an annotation."""
    if get_origin(hint) in (typing.Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    shape = get_origin(hint) or hint
    return [hint] if shape in (Literal, *_WORDS, *_LISTS, *_MAPPINGS) else []


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits an annotation; annotations without plain types fit all."""
    kinds = _kinds(hint)
    return all(kind is NoneType for kind in kinds) or any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    shape, parts = get_origin(kind) or kind, get_args(kind)
    if shape is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if isinstance(value, bool) or shape is bool:
        return isinstance(value, bool) and shape is bool
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        return False
    if shape is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if shape in _MAPPINGS:
        return isinstance(value, dict)
    if shape not in _LISTS:
        return isinstance(value, shape)
    if not isinstance(value, list):
        return False
    if shape is tuple and parts and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return not parts or all(_fits(item, parts[0]) for item in value)


def _words(hint: Any) -> str:
    """Return an annotation in words."""
    return " or ".join(dict.fromkeys(map(_word, _kinds(hint))))


def _word(kind: Any) -> str:
    shape, parts = get_origin(kind) or kind, get_args(kind)
    if shape is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if shape in _WORDS:
        return _WORDS[shape]
    if shape in _MAPPINGS:
        return "a mapping"
    inner = _words(parts[0]) if parts else ""
    items = f" ({inner} each)" if inner else ""
    fixed = shape is tuple and parts and parts[-1] is not Ellipsis
    return f"a list of {len(parts)}{items}" if fixed else f"a list{items}"


def refuse_unknown_keys(cfg: DictConfig, options: DictConfig) -> None:
    """Refuse keys that nothing reads, which Hydra accepts behind a ``+``: ``+trainer.devicez=3``.

    The shipped configs name every parameter, so a key that they lack is a typing error, unless the
    node has another ``_target_``.

    Args:
        cfg: The composed config.
        options: The same without the user's changes, see
            :func:`se_lightning.cli.targets.chosen_options`.

    Raises:
        ValueError: If a key is unknown; the message suggests the nearest one.
    """
    _refuse_others(cfg, (*GROUPS, *VALUES), options)
    for group in {*GROUPS, "checkpoint", "jobs"} - {*_OPEN, *compared_elsewhere()}:
        node, option = cfg.get(group), options.get(group)
        if not isinstance(node, DictConfig) or not isinstance(option, DictConfig):
            continue
        if group in GROUPS and not is_shipped(group):
            continue  # its signature decides
        if node.get("_target_") == option.get("_target_"):
            # A list, since `in` is False for the keys of a DictConfig that have no value.
            _refuse_others(node, list(option), options, f"{group}.")


def _refuse_others(
    node: DictConfig, known: Collection[Any], shipped: DictConfig, prefix: str = ""
) -> None:
    for key in map(str, node):
        if key not in known:
            near = nearest_key(f"{prefix}{key}", shipped)
            advice = f" Did you mean `{near}`?" if near else ""
            raise ValueError(f"There is no config key `{prefix}{key}`.{advice}")
