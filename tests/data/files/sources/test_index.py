import io
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from se_lightning.data.files.sources import index as index_module
from se_lightning.data.files.sources.folders import class_folders
from se_lightning.data.files.sources.index import Strings, cached_index, stamp
from se_lightning.data.files.sources.progress import progress


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(folder))
    return folder


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    for name in ("cat/1.jpg", "cat/2.jpg", "cat/deep/3.jpg", "dog/1.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    age(root)
    return root


def age(root: Path, seconds: float = 10) -> None:
    """Give folders an old mtime."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        then = folder.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(folder, ns=(then, then))


@pytest.fixture
def scans(monkeypatch):
    """Count how often folders are scanned."""
    from se_lightning.data.files.sources import folders

    seen = []
    scan = folders._scan
    monkeypatch.setattr(folders, "_scan", lambda root: seen.append(root) or scan(root))
    return seen


def listed(root):
    source, classes, _ = class_folders(root)
    return [(source.name(i), int(source.labels[i])) for i in range(len(source))], list(classes)


def oracle(root):
    data = ImageFolder(root)
    return data.samples, data.classes


def test_strings_are_returned_unchanged_even_if_they_are_not_utf8():
    names = ["a/1.jpg", "", "b/\u00e9.png", os.fsdecode(b"\xff\xfe.jpg")]
    packed = Strings.pack(iter(names))
    assert list(packed) == names
    assert packed[-1] == names[-1]
    assert list(Strings.of(packed.arrays("x"), "x")) == names
    with pytest.raises(IndexError):
        packed[4]


def test_the_second_call_scans_nothing_and_returns_the_same(root, scans):
    first = listed(root)
    assert listed(root) == first == oracle(root)
    assert len(scans) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "cat" / "0.jpg").touch(),
        lambda root: (root / "cat" / "deep" / "4.jpg").touch(),
        lambda root: (root / "cat" / "1.jpg").unlink(),
        lambda root: (root / "cat" / "1.jpg").rename(root / "cat" / "9.jpg"),
        lambda root: (root / "cat" / "deep").rename(root / "cat" / "deeper"),
        lambda root: (root / "dog").rename(root / "wolf"),
        lambda root: ((root / "emu").mkdir(), (root / "emu" / "1.png").touch()),
    ],
    ids=["add", "add below", "remove", "rename", "rename below", "rename class", "add class"],
)
def test_a_change_in_any_folder_is_seen(root, scans, change):
    before = listed(root)
    change(root)
    after = listed(root)
    assert after == oracle(root)
    assert after != before
    assert len(scans) == 2


def test_an_image_that_is_overwritten_needs_no_new_scan(root, scans):
    listed(root)
    (root / "dog" / "1.jpg").write_bytes(b"other")
    listed(root)
    assert len(scans) == 1


def test_a_folder_with_a_restored_mtime_is_scanned(root, scans):
    before = listed(root)
    times = [(folder, folder.stat().st_mtime_ns) for folder in (root, root / "cat")]
    (root / "cat" / "1.jpg").rename(root / "cat" / "9.jpg")
    for folder, then in times:
        os.utime(folder, ns=(then, then))
    assert listed(root) == oracle(root) != before
    assert len(scans) == 2


def test_recent_changes_are_not_cached(root, scans, cache):
    (root / "cat" / "0.jpg").touch()
    listed(root)
    assert not cache.exists()
    age(root)
    listed(root)
    listed(root)
    assert len(scans) == 2


def test_files_younger_than_two_seconds_are_not_cached_on_coarse_file_systems(root, scans, cache):
    now = int(time.time())
    for folder in (root, root / "cat", root / "cat" / "deep", root / "dog"):
        os.utime(folder, ns=((now - 1) * 10**9,) * 2)
    listed(root)
    assert not cache.exists()


def test_a_folder_dated_in_the_future_is_cached(root, scans):
    os.utime(root / "dog", (time.time() + 1e6,) * 2)
    listed(root)
    listed(root)
    assert len(scans) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", None])
def test_a_damaged_cache_file_is_rebuilt(root, scans, cache, damage):
    first = listed(root)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    path.write_bytes(flipped[: -len(flipped) // 3] if damage is None else damage)
    assert listed(root) == first
    assert path.read_bytes() == content
    assert len(scans) == 2


def test_every_flipped_byte_of_a_cache_file_is_noticed_or_harmless(root, cache):
    first = listed(root)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        changed = bytearray(content)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        assert listed(root) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(labels=index["labels"][:-1]),
        lambda index: index.update(labels=index["labels"].astype(float)),
        lambda index: index.update(labels=index["labels"] + 1),
        lambda index: index.update(labels=index["labels"] + 10**9),
        lambda index: index.update(names=index["names"][:-1]),
        lambda index: index.update(names_offsets=index["names_offsets"][::-1]),
        lambda index: index.update(names_offsets=index["names_offsets"][:0]),
        lambda index: index.update(names=index["names"].astype(object)),
        lambda index: index.pop("names"),
        lambda index: index.pop("classes"),
        lambda index: index.update(stamps=index["stamps"][:, :2]),
    ],
)
def test_a_cache_file_of_another_program_is_rebuilt(root, scans, cache, change):
    first = listed(root)
    (path,) = cache.iterdir()
    with np.load(path) as file:
        index = dict(file)
    change(index)
    np.savez(path, **index)
    assert listed(root) == first
    assert len(scans) == 2
    assert listed(root) == first
    assert len(scans) == 2


def test_a_compressed_cache_file_and_a_pipe_are_not_read(root, scans, cache):
    first = listed(root)
    (path,) = cache.iterdir()
    with np.load(path) as file:
        index = dict(file)
    np.savez_compressed(path, **index | {"bomb": np.zeros(10**6)})
    assert listed(root) == first
    path.unlink()
    os.mkfifo(path)
    assert listed(root) == first
    assert len(scans) == 3


def test_a_cache_that_cannot_be_written_is_one_warning(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="SE_LIGHTNING_CACHE") as caught:
        found = listed(root)
    assert found == oracle(root)
    assert len(caught) == 1


def test_a_full_disk_leaves_no_part_of_a_cache_file(root, cache, monkeypatch):
    def full(file, **_):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module.np, "savez", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        listed(root)
    assert list(cache.iterdir()) == []


def test_the_cache_is_where_xdg_says(root, tmp_path, monkeypatch):
    monkeypatch.delenv("SE_LIGHTNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    listed(root)
    assert len(list((tmp_path / "xdg" / "se_lightning").glob("*.npz"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    listed(root)
    assert len(list((tmp_path / "home" / ".cache" / "se_lightning").glob("*.npz"))) == 1


def test_roots_and_kinds_have_separate_caches(tmp_path, cache):
    file = tmp_path / "a"
    file.touch()
    os.utime(file, (1, 1))

    def scan(number):
        return lambda: ({"x": np.array(number)}, {str(file): stamp(str(file))})

    places = [(tmp_path, "a"), (tmp_path, "b"), (tmp_path / "c", "a")]
    for number, (root, kind) in enumerate(places):
        cached_index(root, kind, scan(number))
    assert [int(cached_index(*place, scan(9))["x"]) for place in places] == [0, 1, 2]
    file.write_bytes(b"longer")
    os.utime(file, (1, 1))
    assert int(cached_index(*places[0], scan(9))["x"]) == 9


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_line_in_the_log_or_a_bar_on_a_terminal(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    with progress("indexing /data", total=3) as done:
        done(3)
    assert caplog.messages == ["indexing /data ..."]
    caplog.clear()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress("indexing /data[1]", unit="bytes", total=3) as done:
        done(2)
    assert "indexing /data[1]" in sys.stderr.getvalue()
    assert "2/3 bytes" in sys.stderr.getvalue()
    assert caplog.messages == []
    assert capsys.readouterr().out == ""


def test_further_ranks_show_no_progress(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress("indexing /data") as done:
        done(1)
    assert caplog.messages == []
    assert sys.stderr.getvalue() == ""


@pytest.mark.slow
def test_the_second_scan_of_a_hundred_thousand_files_is_instant(tmp_path):
    root = tmp_path / "many"
    for c in range(1000):
        folder = root / f"n{c:08d}"
        folder.mkdir(parents=True)
        for i in range(100):
            os.close(os.open(folder / f"n{c:08d}_{i:05d}.JPEG", os.O_CREAT | os.O_WRONLY))
    age(root)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        source, classes, _ = class_folders(root)
        times.append(time.perf_counter() - began)
    print(f"100,000 files: {times[0]:.2f} s, the second time {times[1]:.2f} s")
    assert len(source) == 100_000
    assert len(classes) == 1000
    assert source.name(99_999) == str(root / "n00000999/n00000999_00099.JPEG")
    assert times[1] < 5
