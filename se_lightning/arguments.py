"""Checks of single arguments, their types and their documentation.

Each check raises a ValueError with the name, the value and the valid values of the argument.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "argument_docs",
    "boolean",
    "fraction",
    "natural_number",
    "one_of",
    "plain",
    "positive_integer",
    "refuse_unknown",
]


def positive_integer(name: str, value: object) -> None:
    """Check that an argument is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a whole number of at least 1.")


def natural_number(name: str, value: object) -> None:
    """Check that an argument is an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` (={value!r}) must be a whole number of at least 0.")


def boolean(name: str, value: object) -> None:
    """Check that an argument is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` (={value!r}) must be true or false.")


def fraction(name: str, value: object) -> None:
    """Check that an argument is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a number from 0 to below 1.")


def one_of(name: str, value: object, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Check that an argument is one of a few names."""
    if value not in known:
        names = ", ".join(name or "''" for name in known)
        raise ValueError(f"`{name}` (={value!r}) must be one of {names}.")


def refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that do not exist.

    Args:
        what: Name of the network or module, for the message.
        options: Names of the given options.
        known: Names of all options.

    Raises:
        ValueError: If an option is unknown; the message names the nearest.
    """
    known = list(known)
    for name in options:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=3)
        way_out = f"Nearest: {', '.join(near)}" if near else f"Its options: {', '.join(known)}"
        raise ValueError(f"{what} has no option `{name}`. {way_out}.")


def plain(value: Any) -> Any:
    """Return a list or mapping of OmegaConf as Python's own, which every checkpoint can hold.

    Hydra passes them to constructors unless ``_convert_`` says otherwise.

    Example:
        >>> plain([8, 16]), plain("avg")
        ([8, 16], 'avg')
    """
    if type(value).__module__.partition(".")[0] != "omegaconf":
        return value
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, Sequence) else value


def argument_docs(*sources: Any) -> str:
    """Return a docstring with the ``Args`` sections of several others.

    Command-line parsers such as Lightning's read the help of an option from it, and use the last
    entry of a name.

    Args:
        *sources: Classes and functions; one without such a section adds nothing.

    Example:
        >>> print(argument_docs(positive_integer, argument_docs))
        The options.
        <BLANKLINE>
        Args:
            *sources: Classes and functions; one without such a section adds nothing.
    """
    lines = ["The options.", "", "Args:"]
    for source in sources:
        section = inspect.cleandoc(source.__doc__ or "").partition("\nArgs:\n")[2]
        for line in section.splitlines():
            if not line.startswith(" "):
                break
            lines.append(line)
    return "\n".join(lines)
