"""Safe reading of CIFAR's pickles: no code in them is run."""

import io
import pickle
from typing import Any

import numpy as np

__all__ = ["ByteArray", "plain", "unpickle"]


def plain(value: Any) -> Any:
    """Decode a Python 2 string, which the unpickler returns as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


class ByteArray:
    """Stand-in for a NumPy array of bytes in a pickle."""

    values = np.empty((0, 0), np.uint8)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, content = state
        if dtype.name != "u1":
            raise ValueError(f"an array of {dtype.name!r}, not of bytes")
        order: Any = "F" if fortran else "C"
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _Dtype:
    """Stand-in for a NumPy dtype in a pickle."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = plain(name)

    def __setstate__(self, state: tuple) -> None:
        """Ignore byte order and alignment, which do not matter for single bytes."""


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): ByteArray,
    ("numpy._core.multiarray", "_reconstruct"): ByteArray,
    ("numpy", "ndarray"): None,  # only an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): str.encode,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that refuses every name that CIFAR's pickles do not need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which was not run")
        return _GLOBALS[module, name]


def unpickle(content: bytes, *keys: str) -> dict:
    """Read a pickled dict of lists, strings, numbers and arrays of bytes.

    Args:
        content: The whole file, written by Python 2 or 3.
        *keys: Required keys of the dict.

    Raises:
        ValueError: If the content is damaged or something else; the caller adds the file's name.

    Example:
        >>> unpickle(pickle.dumps({b"labels": [3, 1]}), "labels")
        {'labels': [3, 1]}
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"its pickle cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"its pickle contains a {type(found).__name__}, not a dict")
    entries = {plain(key): value for key, value in found.items()}
    for key in keys:
        if key not in entries:
            raise ValueError(f"it has no {key!r}, only {', '.join(map(str, entries))}")
    return entries
