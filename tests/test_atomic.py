import errno
import json
import math
import threading

import pytest

from se_lightning.atomic import atomic_path, write_json, write_text


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, texts = tmp_path / "file", ["a" * 200_000, "b" * 200_000]
    write_text(path, texts[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(100):
        write_text(path, texts[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)


def test_an_exception_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_keep_does_not_overwrite_an_existing_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "first", keep=True)
    write_text(path, "second", keep=True)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_sole_writer_removes_the_temporary_files_of_others(tmp_path):
    path, leftover = tmp_path / "file", tmp_path / ".file.77.tmp"
    leftover.write_text("of a killed process")
    write_text(path, "text")
    assert leftover.exists()
    with atomic_path(path, sole_writer=True) as temporary:
        temporary.write_text("text")
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, (1.5, -math.inf)], "b": {"c": "NaN"}})

    def refuse(name):
        raise AssertionError(name)

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": [None, [1.5, None]], "b": {"c": "NaN"}}
