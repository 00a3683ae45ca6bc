import gc
import hashlib
import io
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from se_lightning.data.files.sources import source as sources_module
from se_lightning.data.files.sources.folders import class_folders
from se_lightning.data.files.sources.image_folder import folder_sources
from se_lightning.data.files.sources.index import Strings
from se_lightning.data.files.sources.shard_writer import write_shards
from se_lightning.data.files.sources.source import FolderSource, TarSource
from se_lightning.data.files.sources.tars import OpenTar, pack_members, tar_source

CUT = {"val_fraction": 0.2, "test_fraction": 0.1, "split_seed": 0}
# The split of 10, 20 and 3 images, printed by version 0.1.0.
OLD = {
    "val": ["a/4", "a/6", "b/0", "b/18", "b/3", "b/5", "c/2"],
    "test": ["a/2", "b/12", "b/17", "c/1"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "cache"))


def put(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if content is not None else str(path).encode())


def put_classes(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for i in range(count):
            put(root / name / f"{i}.jpg")
    return root


def write_tar(path: Path, contents: dict[str, bytes], format=tarfile.GNU_FORMAT) -> Path:  # noqa: A002
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def open_tar(*paths: Path) -> TarSource:
    members = []
    for number, path in enumerate(paths):
        with OpenTar(path) as tar:
            members += [(number, member, number) for member in tar.members()]
    return tar_source(paths, pack_members(members))


def read_all(source) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def test_a_folder_of_classes_is_read_as_torchvision_reads_it(tmp_path):
    root = tmp_path / "root"
    for name in (
        "b/2.JPEG", "b/10.jpg", "b/x/1.png", "b/x-y/1.webp", "b/x/z/1.Tiff", "b/notes.txt",
        "a b/1.bmp", "a b/hidden.PPM", "Z/1.pgm", "Z/_.jpg", "stray.jpg",
    ):  # fmt: skip
        put(root / name)
    put(tmp_path / "elsewhere" / "l.jpg")
    (root / "b" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    source, classes, _ = class_folders(root)
    oracle = ImageFolder(root)
    assert list(classes) == oracle.classes
    assert [(source.name(i), source.labels[i]) for i in range(len(source))] == oracle.samples
    assert source.labels.dtype == np.int64
    assert read_all(source) == [Path(path).read_bytes() for path, _ in oracle.samples]


def test_a_relative_root_stays_what_it_was(tmp_path, monkeypatch):
    put_classes(tmp_path / "root", {"a": 1})
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x"})
    monkeypatch.chdir(tmp_path)
    source, _, _ = class_folders(Path("root"))
    tar = open_tar(Path("a.tar"))
    monkeypatch.chdir("/")
    assert source.read(0) == (tmp_path / "root" / "a" / "0.jpg").read_bytes()
    assert tar.read(0) == b"x"


def test_an_empty_class_folder_is_refused_by_name(tmp_path):
    put_classes(tmp_path, {"cat": 2})
    put(tmp_path / "dog" / "deep" / "notes.txt")
    with pytest.raises(ValueError, match=r"have no image: dog\."):
        class_folders(tmp_path)


def test_images_without_class_folders_are_refused_with_what_was_found(tmp_path):
    root = tmp_path / "root"
    put(root / "1.jpg")
    with pytest.raises(ValueError, match=r"no class folders.*It has: 1\.jpg"):
        class_folders(root)


def test_a_file_that_is_gone_is_named(tmp_path):
    source, _, _ = class_folders(put_classes(tmp_path, {"a": 2}))
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(OSError, match=r"a/1\.jpg cannot be read: No such file"):
        source.read(1)


def test_pipes_devices_and_links_to_them_are_refused_unopened(tmp_path, monkeypatch):
    source, _, _ = class_folders(put_classes(tmp_path / "root", {"a": 4}))
    paths = [tmp_path / "root" / "a" / f"{i}.jpg" for i in range(4)]
    for path in paths:
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].symlink_to(paths[0])
    paths[2].symlink_to("/dev/zero")
    paths[3].mkdir()
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *_: opened.append(path))
    for index, path in enumerate(paths):
        with pytest.raises(OSError, match=rf"{path} cannot be read: .*not a file"):
            source.read(index)
    with pytest.raises(OSError, match="not a file"):
        open_tar(paths[0])
    assert opened == []


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_file_too_large_for_an_image_is_refused_unread(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(sources_module, "_MAX_BYTES", 100)
    contents = {"a/0.jpg": bytes(100), "a/1.jpg": bytes(101)}
    for name, content in contents.items():
        put(tmp_path / "root" / name, content)
    source, _, _ = class_folders(tmp_path / "root")
    source = open_tar(write_tar(tmp_path / "a.tar", contents)) if kind == "tar" else source
    assert source.read(0) == bytes(100)
    with pytest.raises(OSError, match=r"1\.jpg cannot be read: Its 101 bytes are too many"):
        source.read(1)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, form):
    generator = np.random.default_rng(0)
    long = "l" * 90 + "/" + "m" * 90 + ".jpg"  # needs extra headers in GNU and PAX
    contents = {f"{i}.jpg": generator.bytes(i * 97) for i in range(20)} | {long: b"long"}
    path = write_tar(tmp_path / "a.tar", contents, form)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    source = open_tar(path)
    with tarfile.open(path) as tar:
        oracle = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]
    assert [(source.names[i], source.read(i)) for i in range(len(source))] == oracle
    assert source.name(3) == f"{path}: 3.jpg"


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (1024 + 100, "unexpected end of data"),  # within the data of the second
        (1024 + 300, "unexpected end of data|neither"),
        (512 + 200, "unexpected end of data"),
        (300, "truncated header"),
        (0, "empty file"),
        (3 * 512 + 512, "neither a member nor the end"),  # between two members
        (2 * 512 + 20, "neither a member nor the end"),  # within a header
    ],
)
def test_a_truncated_archive_is_named(tmp_path, cut, why):
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes([i]) * 512 for i in range(1, 4)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"a\.tar is truncated, damaged.*({why}|neither)"):
        open_tar(path)


def test_an_archive_damaged_in_the_middle_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes([i]) * 512 for i in range(1, 4)})
    content = bytearray(path.read_bytes())
    content[1024:1040] = b"\x01" * 16  # the second header, where tarfile stops silently
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar .*nor an end marker at byte 1,024"):
        open_tar(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match="uncompressed"):
        open_tar(tmp_path / "a.tar")


def test_an_archive_that_has_shrunk_since_names_itself_and_the_member(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": bytes(600), "2.jpg": bytes(600)})
    source = open_tar(path)
    os.truncate(path, 2500)
    assert source.read(0) == bytes(600)
    with pytest.raises(OSError, match=r"a\.tar: 2\.jpg is truncated: the archive ends 148 bytes"):
        source.read(1)


def test_a_missing_archive_names_itself_and_the_member(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"x"})
    source = open_tar(path)
    path.unlink()
    with pytest.raises(OSError, match=r"a\.tar: 1\.jpg cannot be read: No such file"):
        source.read(0)


def test_more_archives_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "_MAX_OPEN", 2)
    paths = [write_tar(tmp_path / f"{i}.tar", {"1.jpg": bytes([i])}) for i in range(5)]
    source = open_tar(*paths)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert read_all(source) == [bytes([i]) for i in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del source
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def _digest(source, indices, queue):
    queue.put([source.read(i) for i in indices])


def test_processes_and_threads_read_the_same_archive_at_once(tmp_path):
    generator = np.random.default_rng(0)
    contents = {f"{i}.jpg": generator.bytes(3000) for i in range(200)}
    source = open_tar(write_tar(tmp_path / "a.tar", contents))
    source.read(0)  # opened here, and inherited by a fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    order = generator.permutation(200)
    workers = [context.Process(target=_digest, args=(source, order, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    expected = [contents[f"{i}.jpg"] for i in order]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, order)) == expected
    for worker in workers:
        assert queue.get(timeout=60) == expected
        worker.join()


def test_a_pickled_archive_opens_its_own_files(tmp_path):
    source = open_tar(write_tar(tmp_path / "a.tar", {"1.jpg": b"x"}))
    source.read(0)
    other = pickle.loads(pickle.dumps(source))
    assert other._open == {}
    del source
    assert other.read(0) == b"x"


def test_a_subset_has_the_requested_images(tmp_path):
    source, _, _ = class_folders(put_classes(tmp_path, {"a": 3, "b": 3}))
    some = source.subset(np.array([4, 1]))
    assert len(some) == 2
    assert some.labels.tolist() == [1, 0]
    assert [some.name(0), some.name(1)] == [source.name(4), source.name(1)]
    assert read_all(some.subset(np.array([1]))) == [source.read(1)]
    assert read_all(pickle.loads(pickle.dumps(some))) == read_all(some)


def test_the_numbers_of_labels_and_images_must_agree(tmp_path):
    with pytest.raises(ValueError, match="2 images, but 1 `labels`"):
        FolderSource(tmp_path, Strings.pack(["a", "b"]), np.zeros(1))


def _held_by(thing) -> list:
    """Return all objects that an object keeps alive, except classes and modules."""
    found, pending = {}, [thing]
    while pending:
        one = pending.pop()
        if id(one) in found or isinstance(one, type | type(os)):
            continue
        found[id(one)] = one
        pending += gc.get_referents(one) if not callable(one) else []
    return list(found.values())


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_image_takes_less_than_a_hundred_bytes_and_no_object(kind, tmp_path):
    count = 5000
    if kind == "folder":
        names = Strings.pack(f"n01440764/n01440764_{i:05d}.JPEG" for i in range(count))
        source = FolderSource(tmp_path, names, np.zeros(count, np.int64))
    else:
        contents = {f"n01440764_{i:05d}.JPEG": b"" for i in range(count)}
        source = open_tar(write_tar(tmp_path / "a.tar", contents))
        source.read(0)
    held = _held_by(source.subset(np.arange(count)))
    # Views keep their base alive: each block of memory is counted once.
    blocks = {id(a): a for a in held if isinstance(a, np.ndarray) and a.base is None}
    assert sum(array.nbytes for array in blocks.values()) < 100 * count
    assert not [a for a in held if isinstance(a, list | tuple | dict | set) and len(a) > 100]
    assert len(held) < 100


def test_train_val_and_test_must_have_the_same_classes(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        put_classes(tmp_path / split, {"cat": count, "dog": count})
    sources, classes = folder_sources(tmp_path, **CUT)
    assert classes == ("cat", "dog")
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    for split, source in sources.items():
        oracle = ImageFolder(tmp_path / split)
        assert [(source.name(i), source.labels[i]) for i in range(len(source))] == oracle.samples


def test_without_test_images_val_is_used(tmp_path):
    for split in ("train", "val"):
        put_classes(tmp_path / split, {"cat": 1})
    sources, _ = folder_sources(tmp_path, **CUT)
    assert sources["test"] is sources["val"]
    plain = put_classes(tmp_path / "plain", {"cat": 50})
    sources, _ = folder_sources(plain, val_fraction=0.2, test_fraction=0, split_seed=0)
    assert sources["test"] is sources["val"]
    assert len(sources["train"]) == 50 - len(sources["val"])


def cut(root, **options):
    sources, _ = folder_sources(root, **{**CUT, **options})
    return {split: {s.name(i) for i in range(len(s))} for split, s in sources.items()}


def test_the_split_is_a_function_of_path_and_seed(tmp_path):
    root = put_classes(tmp_path / "root", {"a": 100, "b": 200})
    for seed in (0, 1):
        expected = {"train": set(), "val": set(), "test": set()}
        for path, _ in ImageFolder(root).samples:
            text = f"{seed}/{Path(path).relative_to(root)}".encode()
            place = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") / 2**64
            split = "val" if place < 0.2 else "test" if place < 0.2 + 0.1 else "train"
            expected[split].add(path)
        assert cut(root, split_seed=seed) == expected
    # 4 standard deviations of a binomial distribution
    for split, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(len(expected[split]) - 300 * share) < 4 * (300 * share * (1 - share)) ** 0.5


def test_growth_and_shrinkage_move_no_image(tmp_path):
    root = put_classes(tmp_path / "root", {"a": 60, "b": 60})
    before = cut(root)
    put_classes(root, {"a": 90, "c": 60})
    put(root / "a" / "0_new.jpg")
    for path in (root / "b").glob("1*.jpg"):
        path.unlink()
    after = cut(root)
    there = set().union(*after.values())
    for split, images in before.items():
        assert images & there == images & after[split]


def test_the_old_split_is_that_of_version_0_1_0(tmp_path, caplog):
    root = put_classes(tmp_path / "root", {"a": 10, "b": 20, "c": 3})
    found = cut(root, split_by="position")
    for split, expected in OLD.items():
        assert sorted(each[len(str(root)) + 1 : -4] for each in found[split]) == expected
    assert len(set().union(*found.values())) == 33
    assert "0.1.0" in caplog.text


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (0.5, 0.5), (0.1, -0.1), (1.5, 0)])
def test_fractions_that_leave_nothing_are_refused(tmp_path, val, test):
    root = put_classes(tmp_path / "root", {"a": 10})
    with pytest.raises(ValueError, match=r"`val_fraction`.*`test_fraction`"):
        folder_sources(root, val_fraction=val, test_fraction=test, split_seed=0)


@pytest.mark.parametrize("split_by", ["path", "position"])
def test_a_class_without_training_images_is_refused_by_name(tmp_path, split_by):
    root = put_classes(tmp_path / "root", {"a": 60, "lone": 1})
    seed = 3  # the first that puts the image into another split
    with pytest.raises(ValueError, match=r"leaves no train images of lone\. .*data\.split_seed"):
        folder_sources(root, **{**CUT, "split_seed": seed}, split_by=split_by)


def test_an_empty_split_is_refused_and_a_class_without_one_is_a_warning(tmp_path, caplog):
    root = put_classes(tmp_path / "root", {"a": 60, "few": 3})
    options = {"test_fraction": 0, "split_seed": 1}
    sources, _ = folder_sources(root, val_fraction=0.2, **options)
    assert set(sources["val"].labels) == {0}
    assert caplog.messages == [f"The split of {root} leaves no val images of few."]
    with pytest.raises(ValueError, match=r"leaves no val images\. Add images"):
        folder_sources(root, val_fraction=1e-6, **options)


@pytest.mark.parametrize("count", [9, 12, 20])
def test_few_images_are_tested_on_those_of_val_with_a_warning(tmp_path, caplog, count):
    root = put_classes(tmp_path / "root", {"a": count})
    options = {"val_fraction": 0.4, "test_fraction": 1e-9}
    caplog.clear()
    sources, _ = folder_sources(root, **options, split_seed=0)
    assert sources["test"] is sources["val"]
    assert "leaves no test images, so the validation images are used" in caplog.text


def test_a_missing_folder_is_reported_with_both_ways_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none is not a folder\. Put .*data\.root"):
        folder_sources(tmp_path / "none", **CUT)


def test_shards_of_any_classes_equal_their_source(tmp_path):
    root = put_classes(tmp_path / "root", {"cat": 10, "dog": 10})
    sources, classes = folder_sources(root, **CUT)
    write_shards(sources, classes, tmp_path / "shards")
    again, names = folder_sources(tmp_path / "shards", **CUT)
    assert names == ("cat", "dog")
    for split in ("train", "val", "test"):
        assert again[split].labels.tolist() == sources[split].labels.tolist()
        assert read_all(again[split]) == read_all(sources[split])


def test_shards_without_validation_are_refused(tmp_path):
    source, classes, _ = class_folders(put_classes(tmp_path / "root", {"cat": 2}))
    write_shards({"train": source}, classes, tmp_path / "shards")
    with pytest.raises(ValueError, match=r"has shards, but no val-\*\.tar"):
        folder_sources(tmp_path / "shards", **CUT)
