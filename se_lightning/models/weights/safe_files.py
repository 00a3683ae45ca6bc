"""Reading files of tensors; nothing in them is ever run."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

__all__ = ["read_file"]


def read_file(path: Path) -> Any:
    """Return what a file of torch or of safetensors holds, on the CPU.

    The content tells which of the two it is, not the name.

    Raises:
        ValueError: if it is neither, is damaged, or holds code.
    """
    with path.open("rb") as file:
        start = file.read(256)
    hint = _what_else(start)
    if hint:
        raise ValueError(f"{path} is no checkpoint, or is damaged: {hint}")
    if start[8:9] == b"{":  # after the length of the header
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("(?i)unsupported (global|class)|not an allowed global", str(error)):
            raise ValueError(
                f"{path} holds more than tensors and plain values, which could run code; it was "
                "refused, and nothing of it ran. Where you trust it, save its state dict alone: "
                "torch.save(state_dict, path)."
            ) from error
        raise ValueError(f"{path} is no checkpoint, or is damaged.") from error
    except (RuntimeError, EOFError, OSError, BadZipFile, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint, or is damaged.") from error


def _what_else(start: bytes) -> str:
    """Tell what downloads often are instead."""
    if not start:
        return "it is empty."
    if start.lstrip().startswith(b"<"):
        return "it is a web page. Fetch the file itself, from the page's download link."
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer of git-lfs to the file. Run `git lfs pull`."
    return ""


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no checkpoint, or is damaged: safetensors says {error}. Fetch it again."
        ) from error
