"""Reading of CIFAR's official archives, pickled or binary, packed or unpacked."""

import hashlib
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from shutil import copyfileobj
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from se_lightning.atomic import atomic_path
from se_lightning.data.in_memory.cifar_pickle import ByteArray, plain, unpickle

__all__ = ["Split", "download_cifar", "find_cifar", "read_cifar"]

URL = "https://www.cs.toronto.edu/~kriz/"
MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
_PIXELS = 3072
_Batch = tuple[np.ndarray, dict[str, list[int]]]  # images (N, 3072), labels by kind


@dataclass(frozen=True)
class _Layout:
    """Names of the files and entries in one of the official archives."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: dict[str, str]  # kind of label: key in the pickles, in the order of the binary rows
    names: dict[str, str]  # kind of label: file of the class names
    pickled: bool

    @property
    def batches(self) -> tuple[str, ...]:
        return *self.train, self.test


_TEN, _HUNDRED = {"fine": "labels"}, {"coarse": "coarse_labels", "fine": "fine_labels"}
_LAYOUTS = {  # the first is preferred
    "cifar10": (
        _Layout(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            _TEN,
            {"fine": "batches.meta"},
            pickled=True,
        ),
        _Layout(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
            _TEN,
            {"fine": "batches.meta.txt"},
            pickled=False,
        ),
    ),
    "cifar100": (
        _Layout(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            ("train",),
            "test",
            _HUNDRED,
            {"fine": "meta", "coarse": "meta"},
            pickled=True,
        ),
        _Layout(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            ("train.bin",),
            "test.bin",
            _HUNDRED,
            {"fine": "fine_label_names.txt", "coarse": "coarse_label_names.txt"},
            pickled=False,
        ),
    ),
}


class Split(NamedTuple):
    """Images (N, 3, 32, 32) uint8, and labels (N,) int64 by kind, fine or coarse."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


def find_cifar(root: Path, name: str) -> tuple[_Layout, Path] | None:
    """Return the layout and path of a complete unpacked folder, else of an archive, else None."""
    for layout in _LAYOUTS[name]:
        for folder in (root / layout.folder, root):
            if all((folder / file).is_file() for file in layout.batches):
                return layout, folder
    for layout in _LAYOUTS[name]:
        if (root / layout.archive).is_file():
            return layout, root / layout.archive
    return None


def read_cifar(root: Path, name: str, names: Mapping[str, Sequence[str]]) -> tuple[Split, Split]:
    """Read the training and the test set.

    Args:
        root: Folder that contains an archive or its folder, or that folder itself.
        name: ``"cifar10"`` or ``"cifar100"``.
        names: Class names by kind of label.

    Raises:
        FileNotFoundError: If the files are missing.
        ValueError: If a file is damaged, or is not CIFAR's.
    """
    found = find_cifar(root, name)
    if found is None:
        raise FileNotFoundError(_missing(root, name))
    layout, place = found
    batches = {}
    for file, where, content in _contents(layout, place):
        if file in layout.batches:
            read = _read_pickle if layout.pickled else _read_binary
            batches[file] = _checked(where, read(where, content, layout), names)
        else:
            _check_names(file, where, content, layout, names)
    lacking = [file for file in layout.batches if file not in batches]
    if lacking:
        raise _broken(place, f"{', '.join(lacking)} missing")
    train = [batches[file] for file in layout.train]
    images = np.concatenate([batch.images for batch in train])
    labels = {kind: np.concatenate([batch.labels[kind] for batch in train]) for kind in names}
    return Split(images, labels), batches[layout.test]


def download_cifar(root: Path, name: str) -> None:
    """Download the official archive of pickles into ``root``, and verify its checksum.

    Raises:
        FileNotFoundError: If the download fails.
        ValueError: If its checksum is wrong.
    """
    archive = _LAYOUTS[name][0].archive
    by_hand = f"Put {archive} (md5 {MD5[archive]}) there by hand."
    try:
        root.mkdir(parents=True, exist_ok=True)
        with atomic_path(root / archive) as part:
            _fetch(URL + archive, part)
            md5 = _md5(part)
            if md5 != MD5[archive]:
                raise ValueError(
                    f"{URL}{archive} has changed: its md5 is {md5}, expected {MD5[archive]}. "
                    f"It was not kept in {root.absolute()}. {by_hand}"
                )
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise FileNotFoundError(
            f"{archive} could not be downloaded from {URL} to {root.absolute()}: {error}. {by_hand}"
        ) from error


def _fetch(url: str, path: Path) -> None:
    request = Request(url, headers={"User-Agent": "se-lightning"})
    with urlopen(request, timeout=60) as response, path.open("xb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        bar: Any = nullcontext(response)
        if size and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import wrap_file

            name, console = Path(url).name, Console(stderr=True)
            bar = wrap_file(response, size, description=name, console=console)
        with bar as body:
            copyfileobj(body, file, 1 << 18)
        if size and file.tell() != size:
            raise ConnectionError(f"the connection ended after {file.tell():,} of {size:,} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _missing(root: Path, name: str) -> str:
    layouts = _LAYOUTS[name]
    text = (
        f"{name} is missing in {root.absolute()}: neither "
        f"{' nor '.join(layout.archive for layout in layouts)} is there, nor unpacked "
        f"{' or '.join(layout.folder + '/' for layout in layouts)}."
    )
    for layout in layouts:
        for folder in (root / layout.folder, root):
            lacking = [file for file in layout.batches if not (folder / file).is_file()]
            if len(lacking) < len(layout.batches):
                text += f" {folder.absolute()} lacks {', '.join(lacking)}."
    return f"{text} Set data.root to its folder, or download it with data.download=true."


def _broken(where: str | Path, what: str) -> ValueError:
    return ValueError(
        f"{where} is damaged or not CIFAR's: {what}. Delete it and download it again "
        "(data.download=true), or copy an intact one there."
    )


def _contents(layout: _Layout, place: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (file, its name in messages, content), in one pass over an archive."""
    if place.is_dir():
        for file in (*layout.batches, *dict.fromkeys(layout.names.values())):
            # The class names are only a check, and missing from some copies.
            if (place / file).is_file():
                yield file, str(place / file), (place / file).read_bytes()
        return
    md5 = _md5(place)
    if md5 != MD5[place.name]:
        raise _broken(place, f"its md5 is {md5}, expected {MD5[place.name]}")
    # The checksum covers the class names.
    wanted = {f"{layout.folder}/{file}": file for file in layout.batches}
    with tarfile.open(place, "r|gz") as archive:
        for member in archive:
            file = wanted.get(member.name.removeprefix("./"), "")
            if file and (stream := archive.extractfile(member)):
                yield file, f"{file} in {place}", stream.read()


def _read_binary(where: str, content: bytes, layout: _Layout) -> _Batch:
    width = len(layout.labels) + _PIXELS
    if len(content) % width:
        raise _broken(where, f"{len(content)} bytes are not a multiple of {width}-byte rows")
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    labels = {kind: rows[:, i].tolist() for i, kind in enumerate(layout.labels)}
    return rows[:, len(labels) :], labels


def _read_pickle(where: str, content: bytes, layout: _Layout) -> _Batch:
    entries = _unpickle(where, content, "data", *layout.labels.values())
    if not isinstance(entries["data"], ByteArray):
        raise _broken(where, "its 'data' is not an array")
    labels = {kind: entries[key] for kind, key in layout.labels.items()}
    for kind, values in labels.items():
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise _broken(where, f"its {kind} labels are not a list of whole numbers")
    return entries["data"].values, labels


def _checked(where: str, batch: _Batch, names: Mapping[str, Sequence[str]]) -> Split:
    images, labels = batch
    if images.ndim != 2 or images.shape[1] != _PIXELS or not len(images):
        raise _broken(where, f"its images have shape {images.shape}, not (N, {_PIXELS})")
    for kind, values in labels.items():
        if len(values) != len(images):
            raise _broken(where, f"it has {len(images)} images, but {len(values)} {kind} labels")
        top = len(names[kind]) - 1
        wrong = [value for value in values if not 0 <= value <= top]
        if wrong:
            raise _broken(where, f"it has a {kind} label of {wrong[0]}, not 0 to {top}")
    arrays = {kind: np.array(values, np.int64) for kind, values in labels.items()}
    return Split(images.reshape(-1, 3, 32, 32), arrays)


def _check_names(
    file: str, where: str, content: bytes, layout: _Layout, names: Mapping[str, Sequence[str]]
) -> None:
    for kind in (kind for kind, theirs in layout.names.items() if theirs == file):
        if layout.pickled:
            key = layout.labels[kind].replace("labels", "label_names")
            listed = _unpickle(where, content, key)[key]
            found = [plain(name) for name in listed] if isinstance(listed, list) else [listed]
        else:
            found = list(content.decode("latin1").split())
        for i, (name, theirs) in enumerate(zip_longest(names[kind], found)):
            # The pickles have the official spelling; some text files have `maple`.
            if theirs not in (name, str(name).removesuffix("_tree")):
                raise _broken(where, f"its {kind} class {i} is {theirs!r}, not {name!r}")


def _unpickle(where: str, content: bytes, *keys: str) -> dict:
    try:
        return unpickle(content, *keys)
    except ValueError as error:
        raise _broken(where, str(error)) from error
