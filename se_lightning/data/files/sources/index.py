"""Indexes of many files: numpy arrays, cached on disk."""

import hashlib
import itertools
import os
import stat
import time
import warnings
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from se_lightning.atomic import atomic_path

__all__ = ["MAX_CLASSES", "Arrays", "Stamps", "Strings", "cached_index", "stamp"]

Arrays = dict[str, np.ndarray]
Stamps = dict[str, tuple[int, int, int]]

MAX_CLASSES = 1_000_000  # all classes up to the largest label get a name and weights
_FORMAT = 3  # of the cache files


class Strings:
    """Many strings in two arrays: a million paths without a million Python objects.

    Pages of such arrays stay shared between forked workers; those of a list would be copied,
    since reading a Python object writes its reference count.

    Args:
        blob: Bytes of all strings, concatenated, uint8.
        offsets: Start of each string, and the end of the last one, int64.

    Shape:
        - blob: (B,)
        - offsets: (N + 1,)

    Example:
        >>> names = Strings.pack(["cat/1.jpg", "dog/2.jpg"])
        >>> len(names), names[1]
        (2, 'dog/2.jpg')
    """

    def __init__(self, blob: np.ndarray, offsets: np.ndarray) -> None:
        self.blob = blob
        self.offsets = offsets

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "Strings":
        """Pack strings, including file names that are not UTF-8."""
        blob, offsets = bytearray(), array("q", [0])
        for string in strings:
            blob += os.fsencode(string)
            offsets.append(len(blob))
        # Copied, to free the spare capacity of bytearray and array.
        return cls(np.array(blob, np.uint8), np.array(offsets, np.int64))

    @classmethod
    def of(cls, arrays: Arrays, name: str) -> "Strings":
        """Return the strings in arrays from :meth:`arrays`."""
        return cls(arrays[name], arrays[f"{name}_offsets"])

    def arrays(self, name: str) -> Arrays:
        """Return the two arrays, named for an .npz file."""
        return {name: self.blob, f"{name}_offsets": self.offsets}

    def hashes(self, seed: int) -> np.ndarray:
        """Return a 64-bit hash (N,) of each string, which is different for each seed.

        Takes 2 seconds for the 1.3 million names of ImageNet.
        """
        blob, ends = self.blob.tobytes(), self.offsets.tolist()
        start = hashlib.blake2b(str(seed).encode() + b"/", digest_size=8)

        def one(string: bytes) -> bytes:
            found = start.copy()
            found.update(string)
            return found.digest()

        joined = b"".join(one(blob[a:b]) for a, b in itertools.pairwise(ends))
        return np.frombuffer(joined, "<u8")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start, end = self.offsets[index : index + 2]
        return os.fsdecode(self.blob[start:end].tobytes())


def stamp(path: str) -> tuple[int, int, int]:
    """Return mtime (ns), size (bytes; -1 for a folder) and ctime (ns) of a path.

    Programs set mtime, and so a file can be replaced by one with the same mtime and size. They
    cannot set ctime, which changes with the content.
    """
    found = os.stat(path)
    size = -1 if stat.S_ISDIR(found.st_mode) else found.st_size
    return found.st_mtime_ns, size, found.st_ctime_ns


def cached_index(root: Path, kind: str, scan: Callable[[], tuple[Arrays, Stamps]]) -> Arrays:
    """Return the result of ``scan``, cached until a file changes.

    The cache is ``$SE_LIGHTNING_CACHE``, else ``se_lightning`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``. Its files can be deleted at any time.

    Args:
        root: Folder or archive to scan.
        kind: Kind of scan.
        scan: Returns the arrays, and the :func:`stamp` of every folder and archive that they
            depend on, taken before it was read. (Adding or removing a file changes the mtime of
            its folder.)
    """
    digest = hashlib.sha256(os.fsencode(f"{_FORMAT}\n{kind}\n{os.path.abspath(root)}"))
    path = _cache_folder() / f"{digest.hexdigest()[:32]}.npz"
    index = _load(path)
    if index is None:
        began = time.time_ns()
        index, stamps = scan()
        if not _is_too_fresh(stamps, began):
            _save(path, index, stamps)
    return index


def _is_too_fresh(stamps: Stamps, began: int) -> bool:
    """Return whether a later change could have the same mtime as the scanned state."""
    times = np.array([times[0] for times in stamps.values()], np.int64)
    # Timestamps have a resolution of milliseconds, or of seconds on old file systems and FAT.
    tick = 2_000_000_000 if (times % 1_000_000_000 == 0).all() else 100_000_000
    # A time in the future was set by hand, or by a clock that is permanently wrong.
    return bool(((times > began - tick) & (times <= time.time_ns())).any())


def _cache_folder() -> Path:
    if folder := os.environ.get("SE_LIGHTNING_CACHE"):
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "se_lightning"


def _load(path: Path) -> Arrays | None:
    if not path.is_file():  # a pipe would block
        return None
    try:
        # Opened here, because np.load does not close a file that is not a zip.
        with open(path, "rb") as file, zipfile.ZipFile(file) as parts:
            sizes = sum(part.file_size for part in parts.infolist())
            if sizes > os.fstat(file.fileno()).st_size:  # np.savez does not compress
                return None
            with np.load(file, allow_pickle=False) as arrays:
                index = dict(arrays)
        paths, stamps = Strings.of(index, "stamp_paths"), index.pop("stamps")
        valid = _is_whole(index) and all(
            stamp(path) == tuple(then) for path, then in zip(paths, stamps, strict=True)
        )
    except Exception:  # missing file or folder, or damage, which can raise anything
        return None
    for name in ("stamp_paths", "stamp_paths_offsets"):
        del index[name]
    return index if valid else None


def _is_whole(index: Arrays) -> bool:
    """Return whether the arrays have the types and shapes that a scan gives them."""
    for name in [name for name in index if name.endswith("_offsets")]:
        offsets, blob = index[name], index[name.removesuffix("_offsets")]
        kinds = (blob.dtype, blob.ndim, offsets.dtype, offsets.ndim)
        if kinds != (np.uint8, 1, np.int64, 1) or not len(offsets):
            return False
        if offsets[0] != 0 or offsets[-1] != len(blob) or (np.diff(offsets) < 0).any():
            return False
    if "labels" not in index:
        return True
    count, labels = len(index["names_offsets"]) - 1, index["labels"]
    classes = len(index["classes_offsets"]) - 1 if "classes_offsets" in index else MAX_CLASSES
    members = index.get("members", np.zeros((count, 3), np.int64))
    left_out = len(index.get("left_out_offsets", [0])) - 1
    return (
        (labels.dtype, labels.shape) == (np.int64, (count,))
        and (members.dtype, members.shape) == (np.int64, (count, 3))
        and bool(((labels >= -1) & (labels < classes)).all())
        and bool((members >= 0).all())
        and index.get("left_out_counts", np.zeros(0)).shape == (left_out,)
    )


def _save(path: Path, index: Arrays, stamps: Stamps) -> None:
    arrays = {**index, **Strings.pack(stamps).arrays("stamp_paths")}
    arrays["stamps"] = np.array(list(stamps.values()), np.int64).reshape(-1, 3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        warnings.warn(
            f"The file index cannot be cached in {path.parent} ({error.strerror or error}) and is "
            "rebuilt in each run. Set SE_LIGHTNING_CACHE to a writable folder.",
            stacklevel=2,
        )
