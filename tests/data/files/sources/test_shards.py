import errno
import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from se_lightning.data.files.sources import shard_writer, shards
from se_lightning.data.files.sources.folders import class_folders
from se_lightning.data.files.sources.image_folder import folder_sources
from se_lightning.data.files.sources.shard_writer import write_shards
from se_lightning.data.files.sources.shards import shard_sources

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sources(tmp_path):
    """40 images of up to 200 kB for training, 10 for validation."""
    generator = np.random.default_rng(0)
    found = {}
    for split, count in (("train", 40), ("val", 10)):
        for i in range(count):
            extension = ("JPEG", "jpg", "png", "Jpeg")[i % 4]
            path = tmp_path / "images" / split / CLASSES[i % 3] / f"{i}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(generator.bytes(int(generator.integers(200_000))))
        found[split], _, _ = class_folders(tmp_path / "images" / split)
    return found


def images(source):
    return [(source.read(i), int(source.labels[i])) for i in range(len(source))]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_written_shards_are_read_back(sources, tmp_path):
    paths = write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert [path.name for path in paths] == [
        *(f"train-{i:06d}.tar" for i in range(5)),
        *(f"val-{i:06d}.tar" for i in range(len(paths) - 5)),
    ]
    again, classes = shard_sources(tmp_path / "out")
    assert classes == CLASSES
    assert list(again) == ["train", "val"]
    for split, source in sources.items():
        assert images(again[split]) == images(source)
    assert again["train"].name(1).endswith("train-000000.tar: 000000001.jpg")


def test_tarfile_finds_the_files_unchanged_with_plain_headers(sources, tmp_path):
    paths = write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    number = 0
    for path in paths[:5]:
        assert path.stat().st_size <= 10**6
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            files = [tar.extractfile(member).read() for member in members]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        for image, label in zip(range(0, len(files), 2), range(1, len(files), 2), strict=True):
            extension = Path(sources["train"].name(number)).suffix.lower().replace("jpeg", "jpg")
            assert members[image].name == f"{number:09d}{extension}"
            assert members[label].name == f"{number:09d}.cls"
            assert files[image] == sources["train"].read(number)
            assert files[label] == str(sources["train"].labels[number]).encode()
            number += 1
    assert number == 40


def test_the_record_lists_all_shards(sources, tmp_path):
    paths = write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    record = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert record["format"] == 1
    assert record["class_names"] == list(CLASSES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "shards.json",
        *(path.name for path in paths),
    }
    for split, source in sources.items():
        assert sum(shard["samples"] for shard in record["splits"][split]) == len(source)
        for shard in record["splits"][split]:
            path = tmp_path / "out" / shard["name"]
            assert path.stat().st_size == shard["bytes"]
            with tarfile.open(path) as tar:
                assert len(tar.getmembers()) == 2 * shard["samples"]


def test_a_large_image_has_a_separate_shard(tmp_path):
    for i in range(3):
        path = tmp_path / "a" / "cat" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1_100_000))
    source, classes, _ = class_folders(tmp_path / "a")
    assert len(write_shards({"train": source}, classes, tmp_path / "b", shard_mb=1)) == 3


def test_a_test_set_that_is_the_validation_set_is_written_once(tmp_path, sources):
    found, classes = folder_sources(
        tmp_path / "images", val_fraction=0.1, test_fraction=0.1, split_seed=0
    )
    paths = write_shards(found, classes, tmp_path / "out")
    assert [path.name for path in paths] == ["train-000000.tar", "val-000000.tar"]


class _Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 30, 43, 49])
def test_an_interrupted_run_resumes_to_the_same_bytes(sources, tmp_path, monkeypatch, stop):
    write_shards(sources, CLASSES, tmp_path / "whole", shard_mb=1)
    add, done = shard_writer._add, []

    def add_some(tar, name, data):
        if len(done) == 2 * stop:
            raise _Stop
        done.append(name)
        add(tar, name, data)

    monkeypatch.setattr(shard_writer, "_add", add_some)
    with pytest.raises(_Stop):
        write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert "shards.json" not in content(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(ValueError, match="unfinished"):
        shard_sources(tmp_path / "out")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    monkeypatch.setattr(shard_writer, "_add", add)
    write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    for name, then in written.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == then


def test_remains_of_a_killed_run_are_overwritten(sources, tmp_path, monkeypatch):
    write_shards(sources, CLASSES, tmp_path / "whole", shard_mb=1)
    record = shard_writer._write_record

    def killed(path, what):
        if what["splits"]["train"]:  # the first shard has its name, but is not recorded
            raise _Stop
        record(path, what)

    monkeypatch.setattr(shard_writer, "_write_record", killed)
    with pytest.raises(_Stop):
        write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    (tmp_path / "out" / ".train-000001.tar.tmp").write_bytes(b"part")
    monkeypatch.setattr(shard_writer, "_write_record", record)
    write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_complete_folder_is_left_alone(sources, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    paths = write_shards(sources, CLASSES, tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()]
    caplog.clear()
    assert write_shards(sources, CLASSES, tmp_path / "out") == paths
    assert caplog.messages == [f"The shards in {tmp_path / 'out'} are complete: nothing to do."]
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()] == times


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 5000)])
def test_a_second_call_restores_lost_shards(sources, tmp_path, harm):
    write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    before = content(tmp_path / "out")
    harm(tmp_path / "out" / "train-000002.tar")
    write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert content(tmp_path / "out") == before


def test_other_images_in_the_same_folder_are_refused(sources, tmp_path):
    out = tmp_path / "out"
    write_shards(sources, CLASSES, out)
    before = content(out)
    less = {**sources, "val": sources["val"].subset(np.arange(9))}
    others = {**sources, "val": sources["val"].subset(np.arange(10))}
    others["val"].labels = others["val"].labels[::-1]
    for these, classes, size in (
        (less, CLASSES, 300),
        (others, CLASSES, 300),
        (sources, ("a", "b", "c"), 300),
        (sources, CLASSES, 200),
        ({"train": sources["train"]}, CLASSES, 300),
    ):
        with pytest.raises(ValueError, match=r"out has shards with other images.*another folder"):
            write_shards(these, classes, out, shard_mb=size)
    assert content(out) == before


def test_shards_of_unknown_origin_are_not_written_over(sources, tmp_path):
    path = write_tar(tmp_path / "out" / "train-000000.tar", {"1.jpg": b"x", "1.cls": b"0"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="has shards with other images"):
        write_shards(sources, CLASSES, tmp_path / "out")
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_reports_the_space_needed_and_writing_resumes_later(
    sources, tmp_path, monkeypatch, number
):
    write_shards(sources, CLASSES, tmp_path / "whole", shard_mb=1)
    add = shard_writer._add
    out = tmp_path / "out"

    def full(tar, name, data):
        if name.startswith("000000023"):
            raise OSError(number, "No space left on device")
        add(tar, name, data)

    asked = []
    free = shutil._ntuple_diskusage(10**12, 10**12 - 123 * 10**6, 123 * 10**6)
    monkeypatch.setattr(shard_writer, "_add", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(os.listdir(path)) or free)
    with pytest.raises(OSError, match="is full") as caught:
        write_shards(sources, CLASSES, out, shard_mb=1)
    # The partial shard is deleted before the free space is measured.
    assert sorted(asked[0]) == ["shards.partial.json", "train-000000.tar", "train-000001.tar"]
    assert "123.0 MB are free" in str(caught.value)
    assert "same command" in str(caught.value)
    monkeypatch.setattr(shard_writer, "_add", add)
    write_shards(sources, CLASSES, out, shard_mb=1)
    assert content(out) == content(tmp_path / "whole")


def test_the_estimated_space_is_what_the_shards_take(sources, tmp_path):
    record = {"splits": {"train": [{"samples": 7}], "val": []}}
    message = shard_writer._full(tmp_path, sources, record)
    sizes = [len(s.read(i)) for s, a in ((sources["train"], 7), (sources["val"], 0))
             for i in range(a, len(s))]  # fmt: skip
    members = sum(-(-size // 512) * 512 + 3 * 512 for size in sizes)
    assert f"about {members / 1e6:.1f} MB of shards" in message


def test_a_source_that_cannot_be_read_is_named(sources, tmp_path):
    path = Path(sources["train"].name(25))
    path.unlink()
    with pytest.raises(OSError, match=rf"{path.name} cannot be read"):
        write_shards(sources, CLASSES, tmp_path / "out", shard_mb=1)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_shard_has_at_least_a_megabyte(sources, tmp_path):
    with pytest.raises(ValueError, match=r"`shard_mb` \(=0\)"):
        write_shards(sources, CLASSES, tmp_path / "out", shard_mb=0)


def test_shards_that_do_not_match_the_record_are_named(sources, tmp_path):
    out = tmp_path / "out"
    write_shards(sources, CLASSES, out, shard_mb=1)
    (out / "train-000001.tar").unlink()
    os.truncate(out / "train-000003.tar", 1000)
    shutil.copy(out / "train-000000.tar", out / "train-000099.tar")
    with pytest.raises(ValueError, match=r"do not match shards\.json") as caught:
        shard_sources(out)
    assert "train-000001.tar is missing" in str(caught.value)
    assert "train-000099.tar is not in shards.json" in str(caught.value)
    assert "train-000003.tar has 1,000 bytes, not" in str(caught.value)
    assert list(shard_sources(out, ["val"])[0]) == ["val"]  # which is complete


def test_a_damaged_record_is_named(sources, tmp_path):
    out = tmp_path / "out"
    write_shards(sources, CLASSES, out)
    record = (out / "shards.json").read_text()
    for damage, message in (
        (record[:100], "damaged"),
        ("[]", "damaged"),
        (record.replace('"samples"', '"x"'), "damaged"),
        (record.replace('"format": 1', '"format": 2'), "the format 2; this release reads format 1"),
    ):
        (out / "shards.json").write_text(damage)
        with pytest.raises(ValueError, match=rf"shards\.json (is|has) {message}"):
            shard_sources(out)
        with pytest.raises(ValueError, match=r"shards\.json"):
            write_shards(sources, CLASSES, out)


def test_labels_beyond_the_recorded_classes_are_refused(sources, tmp_path):
    write_shards(sources, CLASSES[:2], tmp_path / "out")
    with pytest.raises(ValueError, match=r"label 2, but shards\.json has only 2 classes"):
        shard_sources(tmp_path / "out")


def test_shards_of_other_tools_are_scanned(tmp_path):
    out = tmp_path / "out"
    write_tar(out / "train-b.tar", {"x/2.png": b"b", "x/2.cls": b"12\n", "x/2.json": b"{}"})
    write_tar(
        out / "train-a.tar",
        {"1.cls": b"3", "1.jpeg": b"a", "__key__": b"", "v1.0/n_1.JPG": b"c", "v1.0/n_1.cls": b"0"},
    )
    write_tar(out / "val-0.tar", {"1.webp": b"v", "1.cls": b"1"})
    write_tar(out / "other.tar", {})
    found, classes = shard_sources(out)
    assert images(found["train"]) == [(b"a", 3), (b"c", 0), (b"b", 12)]
    assert images(found["val"]) == [(b"v", 1)]
    assert classes == tuple(map(str, range(13)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"1.jpg": b"", "1.cls": b"0", "2.jpg": b""},
            r"image without class \(\.cls\), such as '2'",
        ),
        (
            {"1.jpg": b"", "1.cls": b"0", "2.cls": b"0"},
            r"class \(\.cls\) without image, such as '2'",
        ),
        ({"1.jpg": b"", "1.png": b"", "1.cls": b"0"}, "two images with the key '1'"),
        ({"1.jpg": b"", "1.cls": b"cat"}, r"1\.cls must be a label.*b'cat'"),
        ({"1.jpg": b"", "1.cls": b"-1"}, r"1\.cls must be a label.*b'-1'"),
        ({"1.jpg": b"", "1.cls": b"1000000"}, r"1\.cls must be .* below 1,000,000, .*b'1000000'"),
        ({"1.jpg": b"", "1.cls": b"9" * 5000}, r"1\.cls must be .*b'9{20}' \.\.\.\.$"),
    ],
)
def test_shards_of_another_format_are_named(tmp_path, members, message):
    write_tar(tmp_path / "out" / "train-0.tar", members)
    with pytest.raises(ValueError, match=rf"train-0\.tar.*{message}"):
        shard_sources(tmp_path / "out")


def test_a_truncated_shard_is_named(tmp_path):
    path = write_tar(tmp_path / "out" / "train-0.tar", {"1.jpg": bytes(5000), "1.cls": b"0"})
    os.truncate(path, 4000)
    with pytest.raises(ValueError, match=r"train-0\.tar is truncated, damaged, or not a tar"):
        shard_sources(tmp_path / "out")


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no shards, train-\*\.tar or"):
        shard_sources(tmp_path)
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": b"0"})
    with pytest.raises(ValueError, match="has shards, but no val-"):
        shard_sources(tmp_path, ["train", "val"])


def test_shards_are_scanned_once_until_one_is_added_or_changed(tmp_path, monkeypatch):
    seen = []
    scan = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda *args: seen.append(args) or scan(*args))

    def age():
        for path in (*tmp_path.glob("out/*"), tmp_path / "out"):
            os.utime(path, (path.stat().st_mtime - 10,) * 2)

    members = {"1.jpg": b"a", "1.cls": b"0"}
    write_tar(tmp_path / "out" / "train-0.tar", members)
    age()
    for _ in range(2):
        assert images(shard_sources(tmp_path / "out")[0]["train"]) == [(b"a", 0)]
    assert len(seen) == 1
    write_tar(tmp_path / "out" / "train-1.tar", members)
    age()
    assert len(images(shard_sources(tmp_path / "out")[0]["train"])) == 2
    write_tar(tmp_path / "out" / "train-0.tar", {"1.jpg": b"b", "1.cls": b"1"})
    assert images(shard_sources(tmp_path / "out")[0]["train"]) == [(b"b", 1), (b"a", 0)]
    assert len(seen) == 3


def test_a_shard_replaced_by_one_of_the_same_size_and_time_is_indexed(tmp_path):
    members = {"1.jpg": b"one", "1.cls": b"0", "2.jpg": b"two", "2.cls": b"1"}
    path = write_tar(tmp_path / "s" / "train-0.tar", members)
    for each in (path, path.parent):
        os.utime(each, ns=(10**18, 10**18))
    assert images(shard_sources(path.parent)[0]["train"]) == [(b"one", 0), (b"two", 1)]
    write_tar(path, members | {"1.cls": b"1", "2.cls": b"0"})
    for each in (path, path.parent):
        os.utime(each, ns=(10**18, 10**18))
    assert images(shard_sources(path.parent)[0]["train"]) == [(b"one", 1), (b"two", 0)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_sparse_files_in_a_shard_are_refused_by_name(tmp_path, kind):
    path = write_tar(tmp_path / "train-0.tar", {"1.jpg": b"one", "1.cls": b"0", "2.cls": b"0"})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("2.jpg")
        member.type, member.linkname = kind, "1.jpg"
        tar.addfile(member)
    with pytest.raises(
        ValueError, match=r"train-0\.tar: 2\.jpg is a link or a sparse file\. Write"
    ):
        shard_sources(tmp_path)
