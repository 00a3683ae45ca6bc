"""IDX, the file format of MNIST: a magic number, the shape, the bytes."""

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
        path: The file; gzip is detected by its content.
        ndim: Required number of dimensions.

    Raises:
        ValueError: If the file is not an IDX file, or truncated, or too long.
    """

    def broken(what: str) -> ValueError:
        return ValueError(
            f"{path.name} in {path.parent} is {what}. Delete it and download it again "
            "(data.download=true), or copy an intact one there."
        )

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise broken("truncated or damaged (gzip)") from error
    header = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, 8, ndim)):
        raise broken(f"not an IDX file of {ndim}-dimensional bytes")
    if len(content) < header:
        raise broken("truncated in its header")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        state = "truncated" if found < expected else "too long"
        raise broken(f"{state}: {found} bytes for a shape of {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
