"""Images as bytes with labels, by index: from files in folders, or from within tar archives."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.index import Strings

__all__ = ["FolderSource", "Source", "TarSource"]

_MAX_OPEN = 256  # archives that a process keeps open; Linux allows it 1024 files by default


class Source(ABC):
    """Encoded images and their labels.

    It pickles, and workers may read it at the same time; all that grows with the number of
    images is in numpy arrays.

    Attributes:
        labels: class of each image, int64.

    Shape:
        - labels: (N,)
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the file of an image, undecoded.

        Raises:
            OSError: naming the file that cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what to call an image in a message: its path, or "archive.tar: member"."""

    def subset(self, indices: np.ndarray) -> "Source":
        """Return some of the images, in the order of ``indices``."""
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


class FolderSource(Source):
    """Files in a folder.

    Args:
        root: the folder.
        names: paths of the files, relative to it.
        labels: class of each.

    Raises:
        ValueError: if there are not as many labels as names.
    """

    def __init__(self, root: Path, names: Strings, labels: np.ndarray) -> None:
        _check(names, labels)
        self.root = os.path.abspath(root)
        self.names = names
        self.labels = labels.astype(np.int64, copy=False)

    def read(self, index: int) -> bytes:  # noqa: D102
        path = self.name(index)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:  # one of read() would not name the file
            raise OSError(f"{path} cannot be read: {error.strerror or error}.") from error

    def name(self, index: int) -> str:  # noqa: D102
        return os.path.join(self.root, self.names[index])


class TarSource(Source):
    """Members of tar archives, read in place.

    Args:
        archives: the tar files.
        members: for each image its archive (a position in ``archives``), where its bytes start
            in that file, and how many they are.
        names: of the members, for messages.
        labels: class of each.

    Shape:
        - members: (N, 3), int64

    Raises:
        ValueError: if there are not as many labels as names.
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
            content = self._pread(number, size, offset)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{self.name(index)} cannot be read: {reason}.") from error
        if len(content) != size:
            raise OSError(
                f"{self.name(index)} is truncated: the archive ends {size - len(content)} bytes "
                "too early. It has changed since this run began, or was copied in part: put "
                "a whole one there."
            )
        return content

    def name(self, index: int) -> str:  # noqa: D102
        return f"{self.archives[self.members[index, 0]]}: {self.names[index]}"

    def _pread(self, number: int, size: int, offset: int) -> bytes:
        """Read without moving an offset, which forked processes would share."""
        file = self._open.get(number)
        if file is not None:
            return os.pread(file, size, offset)
        file = os.open(self.archives[number], os.O_RDONLY | os.O_CLOEXEC)
        # Those opened once stay open: another thread may be reading.
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


def _check(names: Strings, labels: np.ndarray) -> None:
    if len(names) != len(labels):
        raise ValueError(f"{len(names)} images, but {len(labels)} `labels`.")
