"""Image folders with one folder per class, as torchvision's ImageFolder reads them.

Hidden files and folders are left out, and those that systems and other programs keep beside images:
copies of images in ``.ipynb_checkpoints`` would otherwise be a class of their own, or leak from
training into validation.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from se_lightning.data.files.sources.index import Arrays, Stamps, Strings, cached_index, stamp
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.source import FolderSource
from se_lightning.ranks import is_further_rank

__all__ = ["ClassFolders", "class_folders", "found_in", "is_image", "list_folder", "tell_left_out"]

log = logging.getLogger(__name__)

# Folders that are not hidden by a dot: of macOS's archives, of Synology's and QNAP's servers, of
# Windows, Linux and Python.
_FOREIGN = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}
_OUTSIDE = "outside of the class folders"


def is_image(path: str) -> bool:
    """Return whether a file is an image, by its extension, as torchvision does.

    A file that is hidden, or in a hidden folder, is none.

    Example:
        >>> is_image("n01440764_18.JPEG"), is_image("notes.txt"), is_image("__MACOSX/._1.jpg")
        (True, False, False)
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return path.lower().endswith(IMG_EXTENSIONS) and not any(map(_is_hidden, path.split("/")))


def _is_hidden(name: str) -> bool:
    # "." and ".." are parts of the paths in some archives.
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _FOREIGN


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files in a folder, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_hidden(entry.name):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def found_in(folder: Path) -> str:
    """Return the first few entries of a folder, for a message."""
    folders, files = list_folder(folder)
    entries = [f"{name}/" for name in folders] + files
    rest = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return (", ".join(entries[:5]) + rest) or "nothing"


class ClassFolders(NamedTuple):
    """The images of the class folders in one folder."""

    source: FolderSource
    classes: tuple[str, ...]
    left_out: Counter[str]
    """Number of files that are not images, by extension, and of images in no class folder."""


def class_folders(root: Path, classes: Iterable[str] | None = None) -> ClassFolders:
    """Index ``root/<class>/**/<image>``.

    Classes, files and their order are those of ``torchvision.datasets.ImageFolder(root)``, without
    hidden files and folders.

    Args:
        root: The folder of the class folders.
        classes: The classes that may exist, of which some may have no folder or no image. None
            for all that have a folder; then each must have an image.

    Raises:
        ValueError: If there are no class folders, one has no image, or one is not of ``classes``.
    """
    index = cached_index(root, "folder", partial(_scan, root))
    found, labels = tuple(Strings.of(index, "classes")), index["labels"]
    kinds, counts = Strings.of(index, "left_out"), index["left_out_counts"].tolist()
    left_out = Counter(dict(zip(kinds, counts, strict=True)))
    if not found:
        raise ValueError(
            f"{root} has no class folders such as {root}/<class>/1.jpg. It has: {found_in(root)}."
        )
    if classes is None:
        images = np.bincount(labels, minlength=len(found))
        if empty := [name for name, count in zip(found, images, strict=True) if not count]:
            others = f" They have {_listed(left_out)}." if left_out else ""
            raise ValueError(
                f"{len(empty)} class folder(s) in {root} have no image: {', '.join(empty[:5])}."
                f"{others} Add images, or remove the folder."
            )
    else:
        known = {name: label for label, name in enumerate(classes)}
        if strange := [name for name in found if name not in known]:
            raise ValueError(
                f"{root} has folders that are not among the {len(known)} classes: "
                f"{', '.join(strange[:5])}{', ...' if strange[5:] else ''}."
            )
        labels = np.array([known[name] for name in found], np.int64)[labels]
        found = tuple(known)
    source = FolderSource(root, Strings.of(index, "names"), labels)
    return ClassFolders(source, found, left_out)


def tell_left_out(root: Path, left_out: Mapping[str, int]) -> None:
    """Log which files are not read as images, on rank 0."""
    if left_out and not is_further_rank():
        log.warning("Not read in %s: %s.", root, _listed(left_out))


def _listed(left_out: Mapping[str, int]) -> str:
    """Return counts of files in words, the largest first."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count} {_kind(kind, count)}" for kind, count in ordered[:6]]
    rest = sum(count for _, count in ordered[6:])
    return ", ".join(words) + (f", {rest} others" if rest else "")


def _kind(kind: str, count: int) -> str:
    files = "file" if count == 1 else "files"
    if kind == _OUTSIDE:
        return f"image {files} {_OUTSIDE}"
    return f"{kind} {files}" if kind else f"{files} without an extension"


def _scan(root: Path) -> tuple[Arrays, Stamps]:
    top = os.path.abspath(root)
    stamps = {top: stamp(top)}
    classes, outside = list_folder(top)
    counts = []
    left_out = Counter({_OUTSIDE: sum(map(is_image, outside))})

    def names() -> Iterator[str]:
        with progress(f"indexing {root}") as done:
            for name in classes:
                images = _images_below(top, name, stamps, left_out)
                counts.append(len(images))
                done(len(images))
                yield from images

    packed = Strings.pack(names())
    left_out = +left_out  # without zeros
    index = {**packed.arrays("names"), **Strings.pack(classes).arrays("classes")}
    index["labels"] = np.repeat(np.arange(len(classes)), counts)
    index |= Strings.pack(left_out).arrays("left_out")
    index["left_out_counts"] = np.array(list(left_out.values()), np.int64)
    return index, stamps


def _images_below(root: str, top: str, stamps: Stamps, left_out: Counter[str]) -> list[str]:
    """Return the images in ``root/top`` and its subfolders, in ImageFolder's order."""
    found, pending = {}, [top]
    while pending:
        folder = pending.pop()
        path = f"{root}/{folder}"
        stamps[path] = stamp(path)
        below, files = list_folder(path)
        pending += [f"{folder}/{name}" for name in below]
        found[folder] = [f"{folder}/{name}" for name in files if is_image(name)]
        left_out.update(os.path.splitext(name)[1].lower() for name in files if not is_image(name))
    return [image for folder in sorted(found) for image in found[folder]]
