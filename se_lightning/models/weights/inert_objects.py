"""Inert stand-ins for the objects that training scripts save next to the weights."""

import argparse
import datetime
import pathlib
import pickle
import pickletools
import re
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["CodeError", "foreign_names", "load_inert"]


class CodeError(ValueError):
    """A file calls a function that is not known to be harmless."""


class _NoCalls(type):
    """Metaclass of classes that a file may name and instantiate, but not call."""

    def __call__(cls, *_: Any) -> Any:
        raise CodeError(f"{cls.__module__}.{cls.__name__}")


class _Object(metaclass=_NoCalls):
    """Instances are dicts, so that objects with attributes and subclasses of dict can be read."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Result:
    """Result of a harmless call that is of no use here."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _numpy() -> dict[str, Any]:
    """Return what pickled arrays and scalars of NumPy call, except for arrays of objects."""
    scalar, rebuild = (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
    found: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found |= {f"{module}.scalar": scalar, f"{module}._reconstruct": rebuild}
    for code in np.typecodes["All"].replace("O", "").replace("V", ""):
        kind = type(np.dtype(code))
        found[f"{kind.__module__}.{kind.__qualname__}"] = kind  # allows its state
    return found


def _paths() -> dict[str, Any]:
    """Return the paths of pathlib, for any system and any version of Python."""
    pure = {"Posix": pathlib.PurePosixPath, "Windows": pathlib.PureWindowsPath}
    names = [(f"{start}{system}Path", system) for start in ("", "Pure") for system in pure]
    modules = ("pathlib", "pathlib._local")
    return {f"{module}.{name}": pure[system] for module in modules for name, system in names}


# What a file of tensors names: storages, types, and the functions that rebuild tensors.
_OF_TENSORS = re.compile(
    r"torch\.(\w*(Storage|Tensor)|Size|device|bool|[a-z]+\d+\w*|(_utils|storage|nn\.parameter)\.\w+)"
    r"|_codecs\.encode|collections\.OrderedDict"
)
# Plain values, and calls without effects.
_HARMLESS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "builtins.frozenset": frozenset,
    "builtins.range": range,
    "builtins.slice": slice,
    "collections.defaultdict": lambda *_: OrderedDict(),
    "collections.deque": lambda *_: [],
    "datetime.date": datetime.date,
    "datetime.datetime": datetime.datetime,
    "datetime.timedelta": datetime.timedelta,
    "decimal.Decimal": _Result,
    "fractions.Fraction": _Result,
    "functools.partial": _Result,
    "types.SimpleNamespace": types.SimpleNamespace,
    **_numpy(),
    **_paths(),
}


def load_inert(path: Path) -> Any:
    """Read a torch file in which classes and functions are replaced, so that none of them runs.

    Objects of unknown classes become dicts of their entries. Harmless types of Python and NumPy
    keep their value.

    Raises:
        CodeError: If the file calls something else.
        pickle.UnpicklingError: If it cannot be read.
    """
    named = foreign_names(path)
    unknown = [name for name in named if name not in _HARMLESS]
    allowed: list[Any] = [(kind, name) for name, kind in _HARMLESS.items()]
    allowed += [(_stand_in(name), name) for name in unknown]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CodeError:
        raise
    except (pickle.UnpicklingError, TypeError, ValueError) as error:
        # Such as a name in `os`, which torch never allows, or an object whose state is no dict.
        raise CodeError(", ".join(unknown or named)) if named else error from None


def foreign_names(path: Path) -> list[str]:
    """Return the classes and functions that a torch file names, without those of tensors.

    Raises:
        pickle.UnpicklingError: If torch writes no such files.
    """
    return sorted(name for name in set(_globals(path)) if not _OF_TENSORS.fullmatch(name))


def _stand_in(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    return _NoCalls(attribute, (_Object,), {"__module__": module})


def _globals(path: Path) -> Iterator[str]:
    """Yield the classes and functions that a torch file names."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # torch before 1.6: three short pickles, then the content
            file.seek(0)
            for _ in range(4):
                yield from _globals_of_pickle(file)
            return
        with zipfile.ZipFile(file) as parts:
            (name,) = (one for one in parts.namelist() if one.endswith("/data.pkl"))
            with parts.open(name) as content:
                yield from _globals_of_pickle(content)


def _globals_of_pickle(file: Any) -> Iterator[str]:
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                module, name = str(argument).split(" ", 1)
                # Names of Python 2, in which protocol 2 is written.
                module, name = NAME_MAPPING.get((module, name), (module, name))
                yield f"{IMPORT_MAPPING.get(module, module)}.{name}"
            elif opcode.name in ("INST", "STACK_GLOBAL"):
                raise pickle.UnpicklingError(opcode.name)  # torch never writes them
    except MemoryError as error:  # reads as many bytes as a damaged length says
        raise pickle.UnpicklingError("damaged") from error
