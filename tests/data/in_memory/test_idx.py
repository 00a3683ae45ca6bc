import gzip
import struct
import tracemalloc

import pytest

from se_lightning.data.in_memory.idx import read_idx

HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_written_by_hand(tmp_path, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(HEADER + bytes(range(6))))
    assert read_idx(path, 2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (HEADER + bytes(5), "truncated: 5 bytes for a shape of"),
        (HEADER + bytes(7), "too long: more than 6 bytes"),
        (HEADER[:9], "truncated in its header"),
        (b"", "not an IDX file"),
        (b"<html>not found</html>", "not an IDX file of 2-dimensional bytes"),
        (bytes([0, 0, 8, 1]) + bytes(4), "not an IDX file of 2-dimensional bytes"),
        (gzip.compress(HEADER + bytes(6), mtime=0)[:-9], r"truncated or damaged \(gzip\)"),
        (
            gzip.compress(HEADER + bytes(6), mtime=0)[:10] + b"nonsense",
            r"truncated or damaged \(gzip\)",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_folder_and_both_ways_out(tmp_path, content, what):
    path = tmp_path / "train-labels"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        read_idx(path, 2)
    for word in ("train-labels", str(tmp_path), "data.download=true", "copy an intact one"):
        assert word in str(caught.value)


def test_the_largest_header_does_not_allocate(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 0, 8, 2]) + b"\xff" * 8 + bytes(6))
    with pytest.raises(ValueError, match="truncated"):
        read_idx(path, 2)


@pytest.mark.parametrize("promised", [6, 2**31 + 1])
def test_a_gzip_bomb_is_unpacked_only_as_far_as_its_header_promises(tmp_path, promised):
    path = tmp_path / "file"
    header = HEADER[:4] + struct.pack(">II", 1, promised)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    message = "too long: more than 6 bytes" if promised == 6 else "too large: 2,147,483,649 bytes"
    with pytest.raises(ValueError, match=message):
        read_idx(path, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21
