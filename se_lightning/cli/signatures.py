"""What a target takes, as its signature says."""

import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Unpack, get_args, get_origin

from hydra.utils import get_object

__all__ = ["Taken", "hints", "taken"]


@dataclass(frozen=True)
class Taken:
    """The parameters of a callable.

    Attributes:
        names: Its named parameters, and those of the classes to which it passes its ``**`` on.
        required: Those without a default that it lists itself, in order.
        refuses: Whether it has no ``**``, so that other names are mistakes.
        passes: Whether it is a function with a ``**`` that may take any name.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    refuses: bool
    passes: bool


def taken(target: str) -> Taken | None:
    """Return what a target takes; None if it cannot be found, or has no signature."""
    try:
        found = get_object(target)
        layers = [layer[1:] for layer in _layers(found)]
    except Exception:  # Hydra reports a missing target; one without a signature is not checked
        return None
    if not layers:
        return None
    names: dict[str, None] = {}
    for named, is_open in layers:
        names |= dict.fromkeys(p.name for p in named)
        if not is_open:
            break
    first, is_open = layers[0]
    required = tuple(p.name for p in first if p.default is p.empty)
    passes = is_open and not inspect.isclass(found)
    return Taken(tuple(names), required, refuses=not is_open, passes=passes)


def _layers(found: Any) -> Iterator[tuple[Any, list[Parameter], bool]]:
    """Yield a function, its named parameters, and whether it takes other names.

    For a class, these are its constructor and those of its parents, to which other names usually
    go.
    """
    if not inspect.isclass(found):
        yield found, *_parameters(found)
        return
    for kind in found.__mro__[:-1]:  # without `object`
        if "__init__" in vars(kind):
            named, is_open = _parameters(vars(kind)["__init__"])
            yield vars(kind)["__init__"], named[1:], is_open


def _parameters(function: Any) -> tuple[list[Parameter], bool]:
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named, False
    listed = _unpacked(function)
    if listed is None:
        return named, True
    return named + [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in listed], False


def hints(target: str) -> dict[str, Any]:
    """Return the annotations of a target's parameters, including those in ``Unpack``."""
    found: dict[str, Any] = {}
    try:
        for function, _, is_open in _layers(get_object(target)):
            found = typing.get_type_hints(function) | (_unpacked(function) or {}) | found
            if not is_open:
                break
    except Exception:  # Hydra reports a missing target; unreadable annotations are not checked
        return found
    return found


def _unpacked(function: Any) -> dict[str, Any] | None:
    """Return the names and annotations of ``**options: Unpack[...]``; None if there is none."""
    try:
        found = typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be evaluated outside of its module
        return None
    for hint in found.values():
        if get_origin(hint) is Unpack:
            return typing.get_type_hints(get_args(hint)[0])
    return None
