"""Checks of single arguments.

Each raises a ValueError with the name, the value and the valid values of the argument.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["boolean", "fraction", "natural_number", "one_of", "positive_integer"]


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
