"""IDX, the file format of MNIST: a magic number, the shape, the bytes."""

import gzip
import math
import os
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

_MAX_UNPACKED = 2**31  # bytes; a gzip file can be 1000 times as large when unpacked


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, raw or gzipped.

    Args:
        path: The file; gzip is detected by its content.
        ndim: Required number of dimensions.

    Raises:
        ValueError: If the file is not an IDX file, is truncated or too long, or has more than 2 GiB
            when unpacked.
    """

    def broken(what: str) -> ValueError:
        return ValueError(
            f"{path.name} in {path.parent} is {what}. Delete it and download it again "
            "(data.download=true), or copy an intact one there."
        )

    header = 4 + 4 * ndim
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        most = _MAX_UNPACKED if packed else os.fstat(raw.fileno()).st_size
        try:
            with gzip.open(raw) if packed else nullcontext(raw) as file:
                start = file.read(header)
                if start[:4] != bytes((0, 0, 8, ndim)):
                    raise broken(f"not an IDX file of {ndim}-dimensional bytes")
                if len(start) < header:
                    raise broken("truncated in its header")
                shape = struct.unpack(f">{ndim}I", start[4:])
                expected = math.prod(shape)
                if packed and expected > most:
                    raise broken(f"too large: {expected:,} bytes for a shape of {shape}")
                # One byte more, at which gzip verifies its checksum.
                content = file.read(min(expected, most) + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise broken("truncated or damaged (gzip)") from error
    if len(content) < expected:
        raise broken(f"truncated: {len(content)} bytes for a shape of {shape}")
    if len(content) > expected:
        raise broken(f"too long: more than {expected} bytes for a shape of {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)
