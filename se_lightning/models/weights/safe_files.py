"""Reading files of tensors without executing any code in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

__all__ = ["read_file"]


def read_file(path: Path) -> Any:
    """Return the content of a file of torch or safetensors, on the CPU.

    The format is recognized by the content, not by the name.

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
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("(?i)unsupported (global|class)|not an allowed global", str(error)):
            raise ValueError(
                f"{path} contains more than tensors and plain values, which could run code; it "
                "was refused without running any. If you trust it, save only its state dict: "
                "torch.save(state_dict, path)."
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or is damaged.") from error
    except (RuntimeError, EOFError, OSError, BadZipFile, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged.") from error


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
