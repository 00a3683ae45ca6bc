"""MNIST's file format: a magic number, the shape, the bytes."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, raw or gzipped.

    Args:
        path: the file; gzip is known by its content, not by its name.
        ndim: number of dimensions that it must have.

    Raises:
        ValueError: if the file is truncated, longer than it says, or no such file at all.
    """

    def broken(what: str) -> ValueError:
        return ValueError(
            f"{path.name} in {path.parent} is {what}. Delete it and fetch it again "
            "(data.download=true does), or copy an intact one there."
        )

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise broken("truncated or damaged (gzip)") from error
    header = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, 8, ndim)):
        raise broken(f"no IDX file of {ndim}-dimensional bytes")
    if len(content) < header:
        raise broken("truncated in its header")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        state = "truncated" if found < expected else "longer than it says"
        raise broken(f"{state}: {found} bytes for a shape of {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
