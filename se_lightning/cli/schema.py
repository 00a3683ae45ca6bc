"""The config against the signatures that it goes to, before anything is made of it.

Python runs on with a text where a number was meant, until something deep inside a library compares
the two, or takes the text for true. The signature is the schema: values are held against it.
"""

import inspect
import math
import typing
from collections import abc
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Unpack, get_args, get_origin

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

__all__ = ["check_values", "make"]

# Nodes that must say what they make.
_NODES = ("task", "data", "model", "optimizer", "lr_scheduler", "trainer")
_ON_OOM = ("stop", "accumulate")
# null: filled in by the data set.
_FILLED = ("model.num_classes", "model.in_channels", "model.image_size")
# What Lightning divides by, or turns gradients round with, without a look.
_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}
# What the trainer tells schedulers that ask for it.
_TOLD_LATER = ("total_steps", "steps_per_epoch")
_MAX_SEED = 2**32 - 1  # NumPy's
_TOO_LARGE = 2**63  # torch's whole numbers have 64 bits
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
    """Hold the values of a composed config against the parameters that they are given to.

    What an annotation leaves open (a class of another library's) is left to whoever takes it.

    Raises:
        ValueError: naming the key, its value, and what is wanted.
    """
    if not _is(cfg.get("seed"), int) or not 0 <= cfg.seed <= _MAX_SEED:
        raise ValueError(
            f"`seed` (={cfg.get('seed')!r}) must be a whole number from 0 to {_MAX_SEED}."
        )
    if not _fits(_plain(cfg.get("ckpt_path")), str | list[str] | None):
        raise ValueError(f"`ckpt_path` (={cfg.ckpt_path!r}) must be the path of a checkpoint.")
    if cfg.get("on_oom") not in _ON_OOM:
        raise ValueError(f"`on_oom` (={cfg.get('on_oom')!r}) must be one of {', '.join(_ON_OOM)}.")
    for name in _NODES:
        node = cfg.get(name)
        target = node.get("_target_") if isinstance(node, DictConfig) else node
        if not isinstance(target, str) or "." not in target:
            raise ValueError(
                f"`{name}._target_` (={target!r}) must name what is made: package.module.Name."
            )
    for key, target, values in _calls(cfg):
        _check_names(key, target, values)
        for name, value in values.items():
            hint = _hints(target).get(name, Any)
            if not _fits(value, hint) and not (value is None and f"{key}.{name}" in _FILLED):
                raise ValueError(f"{key}: `{name}` (={value!r}) must be {_words(hint)}.")
    for name, least in _LEAST.items():
        value = cfg.trainer.get(name)
        if value is not None and value < least:
            raise ValueError(f"trainer: `{name}` (={value}) must be at least {least}.")
    if cfg.trainer.get("val_check_interval") == 0:
        raise ValueError("trainer: `val_check_interval` (=0) must be above 0; null is an epoch.")


def make(node: DictConfig, name: str, kind: type, **more: Any) -> Any:
    """Make what a node of the config says.

    Args:
        node: with a ``_target_``.
        name: its key.
        kind: what must come of it.
        **more: arguments that are not in the config.

    Raises:
        ValueError: if something else comes of it.
    """
    made = instantiate(node, _convert_="all", **more)
    if not isinstance(made, kind):
        target = node.get("_target_") if isinstance(node, DictConfig) else node
        raise ValueError(
            f"`{name}._target_` (={target!r}) makes a {type(made).__name__}, where a "
            f"{kind.__name__} belongs."
        )
    return made


def _calls(node: DictConfig, name: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the key, the target and the values of each node that is a call."""
    values = {}
    for key in map(str, node):
        # What a link leads to is looked at where it stands.
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
    """Return lists and mappings as Python's own."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check_names(key: str, target: str, values: dict[str, Any]) -> None:
    """Hold the names against the signature: that of an optimizer is called only in training."""
    if key not in ("optimizer", "lr_scheduler"):
        return  # Hydra says it
    try:
        wanted = inspect.signature(get_object(target)).parameters
    except Exception:  # what cannot be found, Hydra says; what has no signature is not judged
        return
    for name in values:
        if name not in wanted and not any(p.kind is p.VAR_KEYWORD for p in wanted.values()):
            raise ValueError(
                f"{key}: {target} got an unexpected keyword argument '{name}': ~{key}.{name} "
                "leaves it out."
            )
    for name, parameter in list(wanted.items())[1:]:  # the first one is what it works on
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in (*values, *_TOLD_LATER):
            raise ValueError(f"{key}: {target} needs `{name}`: +{key}.{name}=...")


def _hints(target: str) -> dict[str, Any]:
    """Return the annotations of a callable's parameters, those of ``Unpack`` among them."""
    try:
        found: Callable[..., Any] = get_object(target)
        hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # what cannot be found, Hydra says; what cannot be read, is not judged
        return {}
    for hint in list(hints.values()):
        if get_origin(hint) is Unpack:
            hints |= typing.get_type_hints(get_args(hint)[0])
    return hints


def _kinds(hint: Any) -> list[Any]:
    """Return the alternatives of an annotation that a config's value can be."""
    if get_origin(hint) in (typing.Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    shape = get_origin(hint) or hint
    return [hint] if shape in (Literal, *_WORDS, *_LISTS, *_MAPPINGS) else []


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value may go where the annotation stands; if in doubt, it may."""
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
    """Say what an annotation wants."""
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
