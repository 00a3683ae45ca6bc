"""The lock of a folder, which makes it the folder of one process."""

import atexit
import contextlib
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

__all__ = ["Claim", "claim", "claimed", "is_ours", "release"]

_HOLDER = re.compile(r"process \d+ on .*")  # the content of a lock file


@dataclass(frozen=True)
class Claim:
    """A folder that this process has locked.

    Attributes:
        path: The lock file.
        file: The same, open.
        created: Whether the folder is that of a run and may be removed with it.
        names: What was in the folder before.
    """

    path: Path
    file: TextIO
    created: bool
    names: frozenset[str]


_claims: dict[Path, Claim] = {}


def claim(path: Path, key: str, *, composed: bool = False) -> None:
    """Lock a folder until this process ends; create it if needed.

    Args:
        path: The lock file in the folder.
        key: Config key of the folder, for messages.
        composed: Whether what is in the folder was written by this process already.

    Raises:
        ValueError: If another process holds the lock, or another program's file is there.
    """
    folder = path.parent.resolve()
    if folder in _claims:
        return
    names = set(os.listdir(folder)) if folder.exists() and not composed else set()
    created = composed or not folder.exists() or names == {path.name}  # of a killed run
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder / path.name, key)
    file.seek(0)
    file.truncate()
    file.write(_holder())
    file.flush()
    _claims[folder] = Claim(folder / path.name, file, created, frozenset(names))
    atexit.register(release, folder)


def claimed(folder: Path) -> Claim | None:
    """Return the claim of this process on a folder."""
    return _claims.get(folder.resolve())


def is_ours(path: Path) -> bool:
    """Return whether a lock file names this process, perhaps before it was replaced."""
    with contextlib.suppress(OSError, ValueError):
        return path.read_text() == _holder()
    return False


def release(folder: Path) -> None:
    """Unlock a folder, and remove it if it was created by this process and is empty."""
    folder = folder.resolve()
    claim = _claims.pop(folder, None)
    if claim is None:
        return
    claim.path.unlink(missing_ok=True)
    claim.file.close()
    if claim.created:
        with contextlib.suppress(OSError):  # not empty: it holds a run
            folder.rmdir()


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _locked(path: Path, key: str) -> TextIO:
    """Return an open lock file, locked."""
    while True:
        file = _opened(path, key)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "just starting"
            file.close()
            raise ValueError(
                f"{path.parent} is in use by another run ({holder}). Wait until it ends, or choose "
                f"another folder with {key}=DIR."
            ) from None
        except OSError:
            return file  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()  # the lock of a run that has just ended and removed the file


def _opened(path: Path, key: str) -> TextIO:
    """Open a lock file; another program's file of this name is not touched."""
    ours = not path.is_symlink() and (not path.exists() or path.is_file())
    if ours:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        content = file.read(200)
        if not content or _HOLDER.match(content):
            return file
        file.close()
    raise ValueError(
        f"{path} is not the lock of a run, and is left alone. Choose another folder with "
        f"{key}=DIR, or remove the file."
    )
