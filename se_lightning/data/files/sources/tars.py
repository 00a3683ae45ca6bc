"""Positions of the members of tar archives, to read them without unpacking."""

import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from se_lightning.data.files.sources.index import Arrays, Strings
from se_lightning.data.files.sources.source import TarSource, open_regular

__all__ = ["Member", "OpenTar", "pack_members", "tar_source"]

_BLOCK = 512


class _LinkError(ValueError):
    """A member without its own, complete bytes."""


class Member(NamedTuple):
    """A file in an archive: ``size`` bytes from ``offset`` of the archive file."""

    name: str
    offset: int
    size: int


class OpenTar:
    """A tar archive opened for reading, including archives in it.

    Args:
        path: The archive, which must not be compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "OpenTar":
        self.file = open_regular(self.path)
        self.size = os.fstat(self.file).st_size
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def members(self, within: Member | None = None) -> Iterator[Member]:
        """Yield the files in the archive, or in a member that is an archive itself.

        Raises:
            ValueError: If the archive is truncated, damaged, or not a tar archive; or if it has a
                link or a sparse file, whose bytes are elsewhere or incomplete.
        """
        name = f"{within.name} in {self.path}" if within else str(self.path)
        window = _Window(self.file, *(within[1:] if within else (0, self.size)))
        try:
            with tarfile.open(fileobj=window, mode="r:") as tar:  # type: ignore[call-overload]
                while info := tar.next():
                    if info.islnk() or info.issym() or info.issparse():
                        raise _LinkError(
                            f"{name}: {info.name} is a link or a sparse file. Write the archive "
                            "again with tar --dereference --hard-dereference, without --sparse."
                        )
                    if info.isreg():
                        yield Member(info.name, window.start + info.offset_data, info.size)
                    tar.members.clear()  # tarfile would keep all of them
                end = tar.offset
        except _LinkError:
            raise
        except (tarfile.TarError, OSError, ValueError) as error:
            raise ValueError(_damaged(name, str(error))) from error
        window.seek(end)
        if window.read(_BLOCK) != bytes(_BLOCK):  # tarfile accepts anything as the end
            raise ValueError(_damaged(name, f"neither a member nor an end marker at byte {end:,}"))

    def read(self, member: Member) -> bytes:
        """Return the bytes of a member."""
        return os.pread(self.file, member.size, member.offset)


class _Window:
    """Part of a file as a file object for tarfile."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self.position = 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> bytes:
        size = max(0, min(size, self.size - self.position))
        content = os.pread(self.file, size, self.start + self.position)
        self.position += len(content)
        return content


def pack_members(members: Iterable[tuple[int, Member, int]]) -> Arrays:
    """Pack (position of the archive, member, label) of each image into arrays."""
    rows, labels = array("q"), array("q")

    def names() -> Iterator[str]:
        for archive, member, label in members:
            rows.extend((archive, member.offset, member.size))
            labels.append(label)
            yield member.name

    index = Strings.pack(names()).arrays("names")
    index["members"] = np.array(rows, np.int64).reshape(-1, 3)
    index["labels"] = np.array(labels, np.int64)
    return index


def tar_source(archives: Sequence[Path], index: Arrays) -> TarSource:
    """Return the source of an index from :func:`pack_members`."""
    return TarSource(archives, index["members"], Strings.of(index, "names"), index["labels"])


def _damaged(name: str, why: str) -> str:
    return (
        f"{name} is truncated, damaged, or not a tar archive ({why}). Replace it with a complete, "
        "uncompressed one."
    )
