import contextlib
import hashlib
import http.server
import io
import os
import pickle
import struct
import sys
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torchvision

from se_lightning.data.cifar import _NAMES
from se_lightning.data.in_memory import cifar_files
from se_lightning.data.in_memory.cifar_files import download_cifar, find_cifar, read_cifar

SETS = ["cifar10", "cifar100"]
FORMS = ["python", "binary"]
FOLDERS = {
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar100", "python"): "cifar-100-python",
    ("cifar100", "binary"): "cifar-100-binary",
}


class Python2:
    """cPickle of Python 2, protocol 2, as it wrote the official files."""

    def __init__(self):
        self.out, self.memo = bytearray(b"\x80\x02"), 0

    def put(self):
        self.memo += 1
        self.out += (
            b"q" + bytes([self.memo]) if self.memo < 256 else b"r" + struct.pack("<I", self.memo)
        )

    def write(self, value):
        if isinstance(value, dict):
            self.out += b"}"
            self.put()
            self.out += b"("
            for pair in value.items():
                for item in pair:
                    self.write(item)
            self.out += b"u"
        elif isinstance(value, list):
            self.out += b"]"
            self.put()
            self.out += b"("
            for item in value:
                self.write(item)
            self.out += b"e"
        elif isinstance(value, int):
            self.out += b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        elif isinstance(value, np.ndarray):
            self.array(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            short = len(content) < 256
            self.out += b"U" + bytes([len(content)]) if short else b"T"
            self.out += (b"" if short else struct.pack("<i", len(content))) + content
            self.put()

    def array(self, value):
        self.out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
        self.out += b"(K\x01"
        for size in value.shape:
            self.write(size)
        self.out += b"\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R"
        self.out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        self.write(value.tobytes())
        self.out += b"tb"


def python2(value):
    pickler = Python2()
    pickler.write(value)
    return bytes(pickler.out + b".")


def batches(name):
    """Return {file: (rows (N, 3072), labels by kind)}."""
    files = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar10" else ["train"]
    generator = np.random.default_rng(len(files))
    made = {}
    for i, file in enumerate([*files, "test_batch" if name == "cifar10" else "test"]):
        size = 6 + i
        rows = generator.integers(0, 256, (size, 3072), dtype=np.uint8)
        labels = {
            kind: generator.integers(0, len(names), size).tolist()
            for kind, names in reversed(_NAMES[name].items())
        }
        made[file] = rows, labels
    return made


def official(name, form):
    """Return {file: content} in the official format."""
    files = {}
    for file, (rows, labels) in batches(name).items():
        if form == "binary":
            columns = [np.array(values, np.uint8)[:, None] for values in labels.values()]
            files[f"{file}.bin"] = np.hstack([*columns, rows]).tobytes()
            continue
        keys = {"fine": "labels"} if len(labels) == 1 else {k: f"{k}_labels" for k in labels}
        entries = {keys[kind]: values for kind, values in labels.items()}
        files[file] = python2({"batch_label": f"{file} of 5", "data": rows, **entries})
    names = {kind: list(values) for kind, values in _NAMES[name].items()}
    if form == "python" and name == "cifar10":
        meta = {"num_cases_per_batch": 10000, "label_names": names["fine"], "num_vis": 3072}
        files["batches.meta"] = python2(meta)
    elif form == "python":
        files["meta"] = python2({f"{kind}_label_names": names[kind] for kind in names})
    elif name == "cifar10":
        files["batches.meta.txt"] = "\n".join([*names["fine"], "", ""]).encode()
    else:
        for kind in names:
            files[f"{kind}_label_names.txt"] = "\n".join([*names[kind], ""]).encode()
    return files


def unpacked(root, name, form, files=None):
    folder = root / FOLDERS[name, form]
    folder.mkdir(parents=True)
    for file, content in (files or official(name, form)).items():
        (folder / file).write_bytes(content)
    return folder


def packed(root, name, form, files=None, prefix=""):
    """Write an archive like the official one: the folder first, the batches unsorted."""
    path = root / f"{name.replace('cifar', 'cifar-')}-{form}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(prefix + FOLDERS[name, form])
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for file, content in reversed((files or official(name, form)).items()):
            member = tarfile.TarInfo(f"{prefix}{FOLDERS[name, form]}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def trust(monkeypatch):
    """Make the checksum of this archive the official one."""

    def as_official(path):
        monkeypatch.setitem(cifar_files.MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())
        return path

    return as_official


def assert_holds(splits, name):
    made = list(batches(name).values())
    for split, expected in zip(splits, (made[:-1], made[-1:]), strict=True):
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (3, 32, 32)
        rows = np.concatenate([rows for rows, _ in expected])
        assert np.array_equal(split.images.reshape(-1, 3072), rows)
        assert set(split.labels) == set(_NAMES[name])
        for kind, labels in split.labels.items():
            assert labels.dtype == np.int64
            assert labels.tolist() == [label for _, values in expected for label in values[kind]]


@pytest.mark.parametrize(
    ("name", "file", "oracle"),
    [
        ("cifar10", "batches.meta", torchvision.datasets.CIFAR10),
        ("cifar100", "meta", torchvision.datasets.CIFAR100),
    ],
)
def test_class_names_pickled_by_python_2_equal_the_official_file(name, file, oracle):
    content = official(name, "python")[file]
    assert hashlib.md5(content).hexdigest() == oracle.meta["md5"]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["folder", "itself", "archive", "./archive"])
def test_each_official_form_is_read_back(tmp_path, trust, name, form, place):
    if "archive" in place:
        trust(packed(tmp_path, name, form, prefix=place.removesuffix("archive")))
        root = tmp_path
    else:
        folder = unpacked(tmp_path, name, form)
        root = folder if place == "itself" else tmp_path
    before = sorted(tmp_path.rglob("*"))
    assert_holds(read_cifar(root, name, _NAMES[name]), name)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked to disk


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("cifar10", torchvision.datasets.CIFAR10), ("cifar100", torchvision.datasets.CIFAR100)],
)
def test_torchvision_reads_the_same_from_the_same_files(tmp_path, monkeypatch, name, oracle):
    monkeypatch.setattr(oracle, "_check_integrity", lambda self: True)
    unpacked(tmp_path, name, "python")
    for ours, train in zip(read_cifar(tmp_path, name, _NAMES[name]), (True, False), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, about Python 2's dtypes
            theirs = oracle(tmp_path, train=train)
        assert np.array_equal(ours.images.transpose(0, 2, 3, 1), theirs.data)
        assert ours.labels["fine"].tolist() == theirs.targets
        assert _NAMES[name]["fine"] == tuple(theirs.classes)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode], ids=["str", "bytes"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_that_python_3_saved_again_are_read(tmp_path, protocol, key, order):
    files = official("cifar100", "python")
    for file, (rows, labels) in batches("cifar100").items():
        entries = {key("data"): np.asarray(rows, order=order)}
        entries |= {key(f"{kind}_labels"): values for kind, values in labels.items()}
        files[file] = pickle.dumps(entries, protocol)
    unpacked(tmp_path, "cifar100", "python", files)
    assert_holds(read_cifar(tmp_path, "cifar100", _NAMES["cifar100"]), "cifar100")


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_pickle_runs_nothing(tmp_path, protocol, file):
    touched = tmp_path / "touched"
    content = pickle.dumps({"data": Evil(os.system, (f"touch {touched}",))}, protocol)
    pickle.loads(content)
    assert touched.exists()  # the pickle does run code
    touched.unlink()
    folder = unpacked(tmp_path, "cifar100", "python")
    (folder / file).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"refers to (posix|nt)\.system, which was not run"
    ) as caught:
        read_cifar(tmp_path, "cifar100", _NAMES["cifar100"])
    assert str(folder / file) in str(caught.value)
    assert not touched.exists()


def test_a_pickle_in_an_archive_runs_nothing(tmp_path, trust):
    files = official("cifar100", "python")
    files["test"] = pickle.dumps(Evil(os.system, (f"touch {tmp_path / 'touched'}",)))
    path = trust(packed(tmp_path, "cifar100", "python", files))
    with pytest.raises(ValueError, match="system, which was not run") as caught:
        read_cifar(tmp_path, "cifar100", _NAMES["cifar100"])
    assert f"test in {path}" in str(caught.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps(Evil(eval, ("1",))), r"builtins\.eval"),
        (pickle.dumps(np.float64(1)), r"multiarray\.scalar"),
        (b"cnumpy\nload\n(S'x'\ntR.", r"numpy\.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", r"numpy\.dtype\.__init__"),
        (b"c_codecs\ndecode\n.", r"_codecs\.decode"),
        # Admitted names in another use.
        (b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", "cannot be read"),
        (b"cnumpy\nndarray\n(K\x09tR.", "cannot be read"),
        (b"cnumpy\ndtype\n}S'name'\nS'u1'\nsb.", "cannot be read"),
        (b"cnumpy.core.multiarray\n_reconstruct\n}S'values'\nK\x01sb.", "cannot be read"),
    ],
)
def test_every_other_global_is_refused_by_its_name(tmp_path, content, what):
    folder = unpacked(tmp_path, "cifar100", "python")
    (folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        read_cifar(tmp_path, "cifar100", _NAMES["cifar100"])


def entries(**changed):
    made = {
        "data": np.zeros((2, 3072), np.uint8),
        "fine_labels": [0, 99],
        "coarse_labels": [0, 19],
        **changed,
    }
    return pickle.dumps({key: value for key, value in made.items() if value is not None}, 2)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (official("cifar100", "python")["train"][:-100], "its pickle cannot be read"),
        (b"", "its pickle cannot be read"),
        (b"<html>not found</html>", "its pickle cannot be read"),
        (pickle.dumps([1]), "contains a list, not a dict"),
        (entries(data=None), "no 'data', only fine_labels, coarse_labels"),
        (entries(coarse_labels=None), "no 'coarse_labels', only data, fine_labels"),
        (entries(data=[1]), "'data' is not an array"),
        (entries(data=np.zeros((2, 3072))), "an array of 'f8', not of bytes"),
        (entries(data=np.zeros((2, 3071), np.uint8)), r"shape \(2, 3071\), not \(N, 3072\)"),
        (entries(data=np.zeros(6144, np.uint8)), r"shape \(6144,\), not \(N, 3072\)"),
        (
            entries(data=np.zeros((1, 3072), np.uint8)),
            "1 images, but 2 coarse labels|1 images, but",
        ),
        (entries(fine_labels=[1]), "2 images, but 1 fine labels"),
        (entries(fine_labels="ab"), "fine labels are not a list of whole numbers"),
        (entries(fine_labels=[1, None]), "fine labels are not a list of whole numbers"),
        (entries(fine_labels=[0, 100]), "a fine label of 100, not 0 to 99"),
        (
            entries(coarse_labels=[2**70, 1]),
            "a coarse label of 1180591620717411303424, not 0 to 19",
        ),
        (entries(coarse_labels=[-1, 1]), "a coarse label of -1, not 0 to 19"),
    ],
)
def test_a_damaged_pickle_is_named_with_what_is_wrong(tmp_path, content, what):
    folder = unpacked(tmp_path, "cifar100", "python")
    (folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        read_cifar(tmp_path, "cifar100", _NAMES["cifar100"])
    for word in (str(folder / "train"), "data.download=true", "copy an intact one"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("cifar10", bytes(2 * 3073 - 1), "6145 bytes are not a multiple of 3073-byte rows"),
        ("cifar10", b"\x0a" + bytes(3072), "a fine label of 10, not 0 to 9"),
        ("cifar10", b"", r"shape \(0, 3072\)"),
        ("cifar100", bytes(3074 + 5), "3079 bytes are not a multiple of 3074-byte rows"),
        ("cifar100", b"\x14" + bytes(3073), "a coarse label of 20, not 0 to 19"),
        ("cifar100", b"\x00\x64" + bytes(3072), "a fine label of 100, not 0 to 99"),
    ],
)
def test_a_damaged_binary_file_is_named_with_what_is_wrong(tmp_path, name, content, what):
    folder = unpacked(tmp_path, name, "binary")
    path = folder / ("test_batch.bin" if name == "cifar10" else "test.bin")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        read_cifar(tmp_path, name, _NAMES[name])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "form", "file", "content", "what"),
    [
        ("cifar10", "binary", "batches.meta.txt", b"plane\ncar\n", "class 0 is 'plane', not 'air"),
        ("cifar10", "binary", "batches.meta.txt", b"airplane\n", "class 1 is None, not 'automob"),
        (
            "cifar10",
            "binary",
            "batches.meta.txt",
            official("cifar10", "binary")["batches.meta.txt"] + b"tree",
            "fine class 10 is 'tree', not None",
        ),
        ("cifar100", "binary", "coarse_label_names.txt", b"fish", "coarse class 0 is 'fish'"),
        ("cifar10", "python", "batches.meta", python2({"label_names": ["x"]}), "0 is 'x', not 'a"),
        ("cifar10", "python", "batches.meta", python2({"names": []}), "no 'label_names', only na"),
        ("cifar10", "python", "batches.meta", python2({"label_names": 5}), "class 0 is 5"),
    ],
)
def test_other_class_names_are_refused(tmp_path, name, form, file, content, what):
    folder = unpacked(tmp_path, name, form)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        read_cifar(tmp_path, name, _NAMES[name])
    assert str(folder / file) in str(caught.value)


def test_class_names_may_be_missing_and_maple_tree_may_be_maple(tmp_path):
    (unpacked(tmp_path / "a", "cifar10", "python") / "batches.meta").unlink()
    assert_holds(read_cifar(tmp_path / "a", "cifar10", _NAMES["cifar10"]), "cifar10")
    names = unpacked(tmp_path / "b", "cifar100", "binary") / "fine_label_names.txt"
    names.write_text(names.read_text().replace("_tree", ""))
    assert_holds(read_cifar(tmp_path / "b", "cifar100", _NAMES["cifar100"]), "cifar100")


def test_folders_come_before_archives_and_pickles_before_binary(tmp_path):
    order = []
    for write in (packed, unpacked):
        for form in reversed(FORMS):
            write(tmp_path, "cifar10", form)
            order.append(find_cifar(tmp_path, "cifar10")[1].name)
    assert order == [
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
    ]
    assert find_cifar(tmp_path, "cifar100") is None
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()  # half unpacked
    assert find_cifar(tmp_path, "cifar10")[1].name == "cifar-10-batches-bin"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
def test_an_archive_of_another_checksum_is_refused_with_both(tmp_path, name, form):
    path = packed(tmp_path, name, form)
    with pytest.raises(ValueError, match="its md5 is") as caught:
        read_cifar(tmp_path, name, _NAMES[name])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    for word in (str(path), found, f"expected {cifar_files.MD5[path.name]}", "Delete it"):
        assert word in str(caught.value)


def test_an_archive_without_a_batch_is_refused(tmp_path, trust):
    files = official("cifar10", "binary")
    del files["data_batch_2.bin"], files["test_batch.bin"]
    path = trust(packed(tmp_path, "cifar10", "binary", files))
    with pytest.raises(ValueError, match=r"data_batch_2\.bin, test_batch\.bin missing") as caught:
        read_cifar(tmp_path, "cifar10", _NAMES["cifar10"])
    assert str(path) in str(caught.value)


def test_missing_files_are_named_with_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        read_cifar(Path("data"), "cifar10", _NAMES["cifar10"])
    for word in (
        str(tmp_path / "data"),
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-py/",
        "cifar-10-batches-bin/",
        "data.root",
        "data.download=true",
    ):
        assert word in str(caught.value)


def test_an_incomplete_folder_is_named_with_its_missing_files(tmp_path):
    folder = unpacked(tmp_path, "cifar10", "python")
    (folder / "data_batch_3").unlink()
    for root in (tmp_path, folder):
        with pytest.raises(FileNotFoundError, match=f"{folder} lacks data_batch_3"):
            read_cifar(root, "cifar10", _NAMES["cifar10"])


@pytest.fixture
def site(monkeypatch):
    """Serve ``answers``, one per request: (status, bytes promised, content)."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, promised, content = answers.pop(0)
            self.send_response(status)
            if promised is not None:
                self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(cifar_files, "URL", f"http://127.0.0.1:{server.server_port}/kriz/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield answers, asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("promise", [True, False])
def test_a_download_is_the_whole_archive(tmp_path, trust, site, name, promise, capfd):
    path = trust(packed(tmp_path, name, "python"))
    content = path.read_bytes()
    answers, asked = site
    answers.append((200, len(content) if promise else None, content))
    root = tmp_path / "new" / "data"
    download_cifar(root, name)
    assert asked == [f"/kriz/{path.name}"]
    assert [file.name for file in root.iterdir()] == [path.name]
    assert_holds(read_cifar(root, name, _NAMES[name]), name)
    assert capfd.readouterr() == ("", "")  # no bar without a terminal


def test_a_download_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path, trust, site):
    path = trust(packed(tmp_path, "cifar10", "python"))
    content, root = path.read_bytes(), tmp_path / "data"
    answers, _ = site
    for answer, kind, what in [
        ((200, len(content), content[:-1000]), FileNotFoundError, "the connection ended after"),
        ((200, None, content[:-1000]), ValueError, "its md5 is"),
        ((200, len(content), content[::-1]), ValueError, "its md5 is"),
        ((404, 4, b"gone"), FileNotFoundError, "404"),
    ]:
        answers.append(answer)
        with pytest.raises(kind, match=what) as caught:
            download_cifar(root, "cifar10")
        md5 = cifar_files.MD5[path.name]
        for word in (str(root), f"Put {path.name} (md5 {md5}) there by hand"):
            assert word in str(caught.value)
        assert list(root.iterdir()) == []
        assert find_cifar(root, "cifar10") is None
    answers.append((200, len(content), content))
    download_cifar(root, "cifar10")
    assert_holds(read_cifar(root, "cifar10", _NAMES["cifar10"]), "cifar10")


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(body, file, size):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    monkeypatch.setattr(cifar_files, "URL", f"{tmp_path.as_uri()}/")
    monkeypatch.setattr(cifar_files, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_cifar(tmp_path / "data", "cifar10")
    assert list((tmp_path / "data").iterdir()) == []


def test_no_network_and_no_folder_are_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_files, "URL", f"{tmp_path.as_uri()}/")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .* by hand"):
        download_cifar(tmp_path / "data", "cifar10")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .* by hand"):
        download_cifar(tmp_path / "file", "cifar10")


def test_a_terminal_shows_a_bar(tmp_path, trust, site, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    path = trust(packed(tmp_path, "cifar10", "python"))
    content = path.read_bytes()
    site[0].append((200, len(content), content))
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        assert sys.stderr.isatty()
        download_cifar(tmp_path / "data", "cifar10")
    assert path.name in terminal.getvalue()
    assert (tmp_path / "data" / path.name).read_bytes() == content
