"""Reading files of tensors without executing any code in them, and writing such files."""

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from se_lightning.models.weights.inert_objects import CodeError, foreign_names, load_inert

__all__ = ["check_sums", "plain", "read_file", "write_file"]

_SAFE = {torch.Tensor, torch.nn.Parameter, bool, int, float, str, bytes, type(None)}
_CONTAINERS = {dict, OrderedDict, list, tuple, torch.Size}


def plain(value: Any) -> Any:
    """Return a value with NumPy scalars replaced by Python's, in dicts, lists and tuples too.

    Other containers, such as the OrderedDict of a state dict, stay as they are.

    Example:
        >>> plain({"best": np.float64(0.5), "steps": [np.int64(3)]})
        {'best': 0.5, 'steps': [3]}
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {plain(key): plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def write_file(content: Any, path: Path) -> None:
    """Write a torch file that :func:`read_file` can read.

    Raises:
        ValueError: If an entry is not a tensor or a plain value; the file is not usable then.
    """
    is_safe = _is_safe(content)
    if not is_safe:
        content = plain(content)
    with path.open("wb") as file:
        torch.save(content, file)
    if is_safe:  # found in less than 1 ms; reading the file's list of names takes 10
        return
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    if refused:
        places = [where for where, value in _entries(content) if _name(value) in refused]
        where = f"its entry {places[0]}" if places else "it"
        raise ValueError(
            f"The checkpoint cannot be saved: {where} holds a {refused[0]}, which could not be "
            "loaded again. Save only tensors, numbers, text, lists and dicts."
        )


def _is_safe(value: Any) -> bool:
    """Return whether a value is of the types that checkpoints usually consist of."""
    if type(value) not in _CONTAINERS:
        return type(value) in _SAFE
    entries = [*value, *value.values()] if isinstance(value, dict) else value
    others = set(map(type, entries)) - _SAFE
    return others <= _CONTAINERS and (
        not others or all(_is_safe(entry) for entry in entries if type(entry) not in _SAFE)
    )


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _entries(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value in nested dicts and lists, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _entries(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _entries(entry, f"{where}[{index}]")
    else:
        yield where, value


def read_file(path: Path, *, weights: bool = False) -> Any:
    """Return the content of a file of torch or safetensors, on the CPU.

    The format is recognized by the content, not by the name.

    Args:
        path: The file.
        weights: Whether only its tensors are of interest. Then other objects in it, such as the
            arguments of a training script, are read as dicts instead of being refused.

    Raises:
        ValueError: If the file is neither, is damaged, or contains code.
    """
    with path.open("rb") as file:
        start = file.read(256)
    hint = _what_else(start)
    if hint:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {hint}")
    if start[8:9] == b"{":  # after the length of the header
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # see the error
            return _read_torch(path, weights)
    except CodeError as error:
        raise ValueError(
            f"{path} contains more than tensors and plain values, which could run code ({error}); "
            "it was refused without running any. If you trust it, save only its state dict: "
            "torch.save(state_dict, path)."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises almost anything for other bytes
        raise ValueError(f"{path} is not a checkpoint, or is damaged.") from error


def _read_torch(path: Path, weights: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if weights:
            return load_inert(path)
        if names := foreign_names(path):
            raise CodeError(", ".join(names)) from None
        raise


def check_sums(path: Path) -> None:
    """Verify the checksums in a torch file, which torch ignores. Takes 0.1 s per 100 MB.

    Raises:
        ValueError: If one is wrong.
    """
    if not zipfile.is_zipfile(path):
        return  # written by torch before 1.6
    with zipfile.ZipFile(path) as file:
        part = file.testzip()
    if part is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of its part {part} is wrong. Use another checkpoint, "
            "or copy the file again."
        )


def _what_else(start: bytes) -> str:
    """Return a hint if the content is that of a typical failed download."""
    if not start:
        return "it is empty."
    if start.lstrip().startswith(b"<"):
        return "it is a web page. Download the file itself, from the link on that page."
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer to the file. Run `git lfs pull`."
    return ""


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a checkpoint, or is damaged (safetensors: {error}). Download it again."
        ) from error
