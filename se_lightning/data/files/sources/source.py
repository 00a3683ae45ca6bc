"""Encoded images with labels, by index, from folders or tar archives."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.index import Strings

__all__ = ["FolderSource", "Source", "TarSource", "open_regular"]

_MAX_OPEN = 256  # archives kept open per process; Linux allows 1024 files by default
_MAX_BYTES = 2**30  # of an image


def open_regular(path: str | Path) -> int:
    """Open a file for reading, and return its descriptor.

    Raises:
        OSError: If it is not a regular file. A pipe would block until another process writes to
            it, and opening a device may have effects.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "It is a folder, a pipe or a device, not a file", str(path))
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Source(ABC):
    """Encoded images and their labels.

    A source can be pickled, and read by several workers at once. Everything that grows with the
    number of images is in numpy arrays.

    Attributes:
        labels: Class of each image, int64.

    Shape:
        - labels: (N,)
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded file of an image.

        Raises:
            OSError: If the file cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image for messages: its path, or "archive.tar: member"."""

    def path_hashes(self, seed: int = 0) -> np.ndarray | None:
        """Return a hash of each image's path relative to its folder.

        It does not depend on the other images. None if the images have no such path: the names in
        shards are numbers.

        Shape:
            (N,) uint64
        """
        return None

    def subset(self, indices: np.ndarray) -> "Source":
        """Return the images of ``indices``, in that order."""
        return _Subset(self, indices)


class _Subset(Source):
    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.labels = source.labels[self.indices]

    def read(self, index: int) -> bytes:
        return self.source.read(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def path_hashes(self, seed: int = 0) -> np.ndarray | None:
        hashes = self.source.path_hashes(seed)
        return None if hashes is None else hashes[self.indices]


class FolderSource(Source):
    """Files in a folder.

    Args:
        root: The folder.
        names: Paths of the files, relative to it.
        labels: Class of each file.

    Raises:
        ValueError: If the numbers of labels and names differ.
    """

    def __init__(self, root: Path, names: Strings, labels: np.ndarray) -> None:
        _check(names, labels)
        self.root = os.path.abspath(root)
        self.names = names
        self.labels = labels.astype(np.int64, copy=False)

    def read(self, index: int) -> bytes:  # noqa: D102
        path = self.name(index)
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                _check_size(os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:  # an error in read() does not name the file
            raise OSError(f"{path} cannot be read: {error.strerror or error}.") from error

    def name(self, index: int) -> str:  # noqa: D102
        return os.path.join(self.root, self.names[index])

    def path_hashes(self, seed: int = 0) -> np.ndarray:  # noqa: D102
        return self.names.hashes(seed)


class TarSource(Source):
    """Members of tar archives, read in place.

    Args:
        archives: The tar files.
        members: For each image, the position of its archive in ``archives``, the offset of its
            bytes, and their number.
        names: Names of the members, for messages.
        labels: Class of each member.

    Shape:
        - members: (N, 3), int64

    Raises:
        ValueError: If the numbers of labels and names differ.
    """

    def __init__(
        self, archives: Sequence[Path], members: np.ndarray, names: Strings, labels: np.ndarray
    ) -> None:
        _check(names, labels)
        self.archives = tuple(os.path.abspath(archive) for archive in archives)
        self.members = members
        self.names = names
        self.labels = labels.astype(np.int64, copy=False)
        self._open: dict[int, int] = {}

    def read(self, index: int) -> bytes:  # noqa: D102
        number, offset, size = self.members[index].tolist()
        try:
            _check_size(size)
            content = self._pread(number, size, offset)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{self.name(index)} cannot be read: {reason}.") from error
        if len(content) != size:
            raise OSError(
                f"{self.name(index)} is truncated: the archive ends {size - len(content)} bytes "
                "too early. It has changed during the run, or its copy is incomplete. Replace it "
                "with a complete copy."
            )
        return content

    def name(self, index: int) -> str:  # noqa: D102
        return f"{self.archives[self.members[index, 0]]}: {self.names[index]}"

    def _pread(self, number: int, size: int, offset: int) -> bytes:
        """Read without a file offset, which forked processes would share."""
        file = self._open.get(number)
        if file is not None:
            return os.pread(file, size, offset)
        file = open_regular(self.archives[number])
        # Archives are never closed early, because another thread may be reading.
        kept = len(self._open) < _MAX_OPEN and self._open.setdefault(number, file) == file
        try:
            return os.pread(file, size, offset)
        finally:
            if not kept:
                os.close(file)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"Its {size:,} bytes are too many for an image")


def _check(names: Strings, labels: np.ndarray) -> None:
    if len(names) != len(labels):
        raise ValueError(f"{len(names)} images, but {len(labels)} `labels`.")
