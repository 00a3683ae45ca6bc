"""ImageNet (ILSVRC 2012): as unpacked folders, original tar files, or shards."""

import csv
import io
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.folders import (
    class_folders,
    found_in,
    is_image,
    list_folder,
    tell_left_out,
)
from se_lightning.data.files.sources.index import Arrays, Stamps, Strings, cached_index, stamp
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.shards import has_shards, shard_sources
from se_lightning.data.files.sources.source import FolderSource, Source
from se_lightning.data.files.sources.tars import Member, OpenTar, pack_members, tar_source

__all__ = ["imagenet_class_names", "imagenet_sources", "imagenet_wnids"]

_TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_DEVKIT = "ILSVRC2012_devkit_t12"
_META = f"{_DEVKIT}/data/meta.mat"
_TRUTH = f"{_DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
_MAX_DEVKIT = 10_000_000  # bytes of one of its files, which have 0.5 MB
# Where Kaggle's archive has train/ and val/, and in which file next to ILSVRC/ the classes of val.
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")
_KAGGLE_TRUTH = "LOC_val_solution.csv"
_VAL_NAME = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_LAYOUTS = {
    "train": f"train/n01440764/*.JPEG, or {_TARS['train']}, or shards train-*.tar",
    "val": f"val/n01440764/*.JPEG, or val/*.JPEG, or {_TARS['val']}, or shards val-*.tar",
}


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 1000 classes, in the order of their standard indices.

    Example:
        >>> imagenet_wnids()[:2]
        ('n01440764', 'n01443537')
    """
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text().split())


def imagenet_class_names() -> tuple[str, ...]:
    """Return the names of the 1000 classes, as in torchvision.

    Example:
        >>> imagenet_class_names()[:2]
        ('tench', 'goldfish')
    """
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def imagenet_sources(root: Path, splits: Sequence[str] = ("train", "val")) -> dict[str, Source]:
    """Find ImageNet's images in a folder.

    Labels are the standard indices, 0 to 999, even if some classes are missing. A split may
    be shards, folders or its original tar, in this order, and Kaggle's ``ILSVRC/Data/CLS-LOC``
    may be in the folder, or be the folder. ``val/*.JPEG`` and the tar of val also need the
    development kit, packed or not, or Caffe's ``val.txt``, or Kaggle's ``LOC_val_solution.csv``.

    Args:
        root: The folder.
        splits: Splits to find, "train" or "val" or both.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a split is missing, incomplete, or has other classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root.absolute()} is not a folder. Put ImageNet's files there (image-net.org offers "
            "them to registered users), or set data.root=... to their folder."
        )
    root = _image_folder(root)
    if has_shards(root):
        sources, classes = shard_sources(root, splits)
        if len(classes) > 1000 or ((root / "shards.json").is_file() and len(classes) != 1000):
            raise ValueError(
                f"The shards in {root} have {len(classes)} classes, not ImageNet's 1000; "
                "data=image_folder takes any."
            )
    else:
        sources = {split: _split(root, split) for split in splits}
    if "train" in sources:
        found = np.count_nonzero(np.bincount(sources["train"].labels, minlength=1000))
        if found < 1000:
            warnings.warn(
                f"Only {found} of ImageNet's 1000 classes have training images in {root}.",
                stacklevel=2,
            )
    return sources


def _image_folder(root: Path) -> Path:
    """Return the folder of train/ and val/ in Kaggle's archive, or ``root`` itself."""
    for first in range(3):
        inside = root / Path(*_KAGGLE.parts[first:])
        if inside.is_dir() and not (root / "train").is_dir():
            return inside
    return root


def _split(root: Path, split: str) -> Source:
    folder, tar = root / split, root / _TARS[split]
    if not folder.is_dir() and tar.with_suffix("").is_dir():  # unpacked under its own name
        folder = tar.with_suffix("")
    if folder.is_dir():
        folders, files = list_folder(folder)
        flat = split == "val" and any(map(is_image, files))
        if flat and not set(folders) & set(imagenet_wnids()):
            names = Strings.pack(name for name in files if is_image(name))
            return FolderSource(folder, names, _val_labels(root, folder, names))
        if folders:
            return _class_folders(folder, folders)
    if tar.is_file():
        scan = _scan_train if split == "train" else _scan_val
        index = cached_index(tar, "imagenet", partial(scan, tar))
        if not len(index["labels"]):
            raise ValueError(f"{tar} has no images. Replace it with a complete copy.")
        if split == "val":
            index["labels"] = _val_labels(root, tar, Strings.of(index, "names"))
        return tar_source([tar], index)
    found = f"{root} has: {found_in(root)}"
    if folder.is_dir():
        found += f"; {folder} has: {found_in(folder)}"
    raise ValueError(
        f"No {split} images of ImageNet in {root}. {found}. Expected there: {_LAYOUTS[split]}."
    )


def _class_folders(folder: Path, names: list[str]) -> Source:
    standard = {wnid: index for index, wnid in enumerate(imagenet_wnids())}
    if strange := [name for name in names if name not in standard]:
        raise ValueError(
            f"{folder / strange[0]} is not one of ImageNet's 1000 classes, n01440764 to n15075141 "
            f"({len(strange)} such folders). Move it away, or use data=image_folder, which takes "
            "any classes."
        )
    source, classes, left_out = class_folders(folder)
    tell_left_out(folder, left_out)
    source.labels = np.array([standard[name] for name in classes])[source.labels]
    return source


def _scan_train(archive: Path) -> tuple[Arrays, Stamps]:
    stamps = {str(archive.absolute()): stamp(str(archive))}
    standard = {f"{wnid}.tar": index for index, wnid in enumerate(imagenet_wnids())}

    def images(tar: OpenTar) -> Iterator[tuple[int, Member, int]]:
        with progress(f"indexing {archive}", unit="bytes", total=tar.size) as done:
            # Sorted, as the unpacked folders are.
            for inner in sorted(tar.members()):
                label = standard.get(inner.name.rpartition("/")[2])
                if label is None:
                    raise ValueError(
                        f"{archive} must have one tar archive per class, such as n01440764.tar, "
                        f"but it has {inner.name}."
                    )
                for member in sorted(tar.members(inner)):
                    if is_image(member.name):
                        yield 0, member, label
                done(inner.size)

    with OpenTar(archive) as tar:
        return pack_members(images(tar)), stamps


def _scan_val(archive: Path) -> tuple[Arrays, Stamps]:
    stamps = {str(archive.absolute()): stamp(str(archive))}
    members = []
    with OpenTar(archive) as tar, progress(f"indexing {archive}", unit="images") as done:
        for member in tar.members():
            if is_image(member.name):
                members.append(member)
                done(1)
        members.sort()
        return pack_members((0, member, -1) for member in members), stamps


def _val_labels(root: Path, images: Path, names: Strings) -> np.ndarray:
    """Return the classes of validation images, looked up by the numbers in their names."""
    numbers = np.zeros(len(names), np.int64)
    for i in range(len(names)):
        match = _VAL_NAME.fullmatch(names[i])
        if match is None:
            raise ValueError(
                f"{names[i]} in {images} must be named like ILSVRC2012_val_00000001.JPEG, because "
                "its class is looked up by its number. Move it away."
            )
        numbers[i] = int(match[1])
    truth, file = _ground_truth(root, images)
    if len(truth) != len(names):
        raise ValueError(
            f"{images} has {len(names)} images, but {file} lists {len(truth)}. One of them is "
            "incomplete: ImageNet has 50,000."
        )
    if not np.array_equal(np.sort(numbers), np.arange(1, len(names) + 1)):
        raise ValueError(
            f"The {len(names)} images in {images} are not numbered 1 to {len(names)}: some are "
            "missing or duplicated."
        )
    return truth[numbers - 1]


def _ground_truth(root: Path, images: Path) -> tuple[np.ndarray, Path]:
    """Return the standard index of each validation image, by number, and the file it is from."""
    top = root.absolute()
    tops = [top, top.parents[2]] if top.parts[-3:] == _KAGGLE.parts else [top]
    for folder in tops:
        if (found := _ground_truth_in(folder)) is not None:
            return found
    raise ValueError(
        f"{images} has validation images, but their classes are missing from {tops[-1]}. Put "
        f"{_DEVKIT}.tar.gz there (from image-net.org, like the images), or Caffe's val.txt "
        f"(ILSVRC2012_val_00000001.JPEG 65), or Kaggle's {_KAGGLE_TRUTH}, or sort the images into "
        "val/n01440764 ..."
    )


def _ground_truth_in(folder: Path) -> tuple[np.ndarray, Path] | None:
    packed, meta, truth = folder / f"{_DEVKIT}.tar.gz", folder / _META, folder / _TRUTH
    caffe, kaggle = folder / "val.txt", folder / _KAGGLE_TRUTH
    try:
        if packed.is_file():
            with tarfile.open(packed) as tar:
                parts = [_extracted(tar, name) for name in (_META, _TRUTH)]
            return _devkit(*parts), packed
        if meta.is_file() and truth.is_file():
            return _devkit(meta.read_bytes(), truth.read_bytes()), truth
        if caffe.is_file():
            return _caffe(caffe.read_text()), caffe
        return (_kaggle(kaggle.read_text()), kaggle) if kaggle.is_file() else None
    except Exception as error:  # scipy, zlib and tarfile raise many kinds
        raise ValueError(
            "The ground truth of ImageNet's validation images cannot be read from "
            f"{packed if packed.is_file() else folder}: {type(error).__name__}: {error}."
        ) from error


def _extracted(tar: tarfile.TarFile, name: str) -> bytes:
    size = tar.getmember(name).size
    if size > _MAX_DEVKIT:
        raise ValueError(f"{name} has {size:,} bytes, too many")
    return tar.extractfile(name).read()  # type: ignore[union-attr]


def _devkit(meta: bytes, truth: bytes) -> np.ndarray:
    """Convert the development kit's class numbers to standard indices."""
    from scipy.io import loadmat

    standard = {wnid: index for index, wnid in enumerate(imagenet_wnids())}
    synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    index_of = {
        int(synset["ILSVRC2012_ID"]): standard[str(synset["WNID"])]
        for synset in synsets
        if synset["num_children"] == 0  # a class, not a group of them
    }
    return np.array([index_of[int(number)] for number in truth.split()])


def _caffe(lines: str) -> np.ndarray:
    return _by_number(line.split() for line in lines.split("\n") if line.strip())


def _kaggle(lines: str) -> np.ndarray:
    """Read ``ILSVRC2012_val_00000001,n01751748 111 108 230 366 ...``: the class and its boxes."""
    standard = {wnid: str(index) for index, wnid in enumerate(imagenet_wnids())}
    rows = csv.reader(lines.splitlines()[1:])
    return _by_number((f"{row[0]}.JPEG", standard[row[1].split()[0]]) for row in rows if row)


def _by_number(pairs: Iterable[Sequence[str]]) -> np.ndarray:
    """Return the labels of (file name, label) pairs, ordered by the numbers in the names."""
    labels = {}
    for name, label in pairs:
        match = _VAL_NAME.fullmatch(name)
        if match is None or not 0 <= int(label) < 1000:
            raise ValueError(
                f"'{name} {label}' does not look like 'ILSVRC2012_val_00000001.JPEG 65'"
            )
        labels[int(match[1])] = int(label)
    return np.array([labels[number] for number in range(1, len(labels) + 1)])
