"""Files that are written completely or not at all, even if the process is killed."""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "write_json", "write_text"]


@contextlib.contextmanager
def atomic_path(
    path: Path, *, durable: bool = False, keep: bool = False, sole_writer: bool = False
) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, and rename it to ``path`` if the block succeeds.

    The temporary file is in the same folder, since a rename is atomic only within a file system.
    If the block raises, the temporary file is removed and ``path`` is left as it was.

    Args:
        path: The final path, in a folder that exists.
        durable: Flush the file and its folder to the disk before returning.
        keep: Leave a file that already exists at ``path`` as it is.
        sole_writer: Assume that no other process writes ``path``, and remove the temporary files
            that killed processes have left.

    Raises:
        OSError: If the file cannot be written or renamed.
    """
    if sole_writer:
        for leftover in path.parent.glob(f".{path.name}.*tmp"):
            leftover.unlink(missing_ok=True)
    # Not the process id, which may be the same on two nodes that share a file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        if not keep:
            os.replace(temporary, path)
        elif not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(temporary, path)
        if durable:
            with contextlib.suppress(OSError):  # not every system can flush a folder
                _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):  # must not hide the error that ended the block
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False, keep: bool = False) -> None:
    r"""Write a text file in one step; see :func:`atomic_path` for the options and errors.

    It is UTF-8. Bytes of names of files that are not UTF-8 are written as escapes: ``\udcf1``.
    """
    with atomic_path(path, durable=durable, keep=keep) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any, *, keep: bool = False) -> None:
    """Write a JSON file in one step; see :func:`atomic_path` for the options and errors.

    Numbers that are not finite, which JSON cannot express, become ``null``.
    """
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", keep=keep)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
