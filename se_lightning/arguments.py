"""Checks of single arguments, each with the error message that every class here uses."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["boolean", "fraction", "one_of", "positive_integer"]


def positive_integer(name: str, value: object) -> None:
    """Check that an argument is an integer of at least 1.

    Raises:
        ValueError: If it is not; the message names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a whole number of at least 1.")


def boolean(name: str, value: object) -> None:
    """Check that an argument is true or false.

    Raises:
        ValueError: If it is not; the message names the argument and its value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` (={value!r}) must be true or false.")


def fraction(name: str, value: object) -> None:
    """Check that an argument is a number from 0 to below 1.

    Raises:
        ValueError: If it is not; the message names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a number from 0 to below 1.")


def one_of(name: str, value: object, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Check that an argument is one of a few names.

    Raises:
        ValueError: If it is not; the message names the argument, its value and the valid names.
    """
    if value not in known:
        raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(known)}.")
