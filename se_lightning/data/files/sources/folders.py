"""Image folders with one folder per class, as torchvision's ImageFolder reads them."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.index import Arrays, Stamps, Strings, cached_index, stamp
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.source import FolderSource

__all__ = ["class_folders", "found_in", "is_image", "list_folder"]


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its extension, as torchvision does.

    Example:
        >>> is_image("n01440764_18.JPEG"), is_image("notes.txt")
        (True, False)
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return name.lower().endswith(IMG_EXTENSIONS)


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files in a folder."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def found_in(folder: Path) -> str:
    """Return the first few entries of a folder, for a message."""
    folders, files = list_folder(folder)
    entries = [f"{name}/" for name in folders] + files
    rest = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return (", ".join(entries[:5]) + rest) or "nothing"


def class_folders(root: Path) -> tuple[FolderSource, tuple[str, ...]]:
    """Index ``root/<class>/**/<image>``; return the source and the class names.

    Classes, files and their order are those of ``torchvision.datasets.ImageFolder(root)``.

    Raises:
        ValueError: If there are no class folders, or one of them has no image.
    """
    index = cached_index(root, "folder", partial(_scan, root))
    source = FolderSource(root, Strings.of(index, "names"), index["labels"])
    return source, tuple(Strings.of(index, "classes"))


def _scan(root: Path) -> tuple[Arrays, Stamps]:
    top = os.path.abspath(root)
    stamps = {top: stamp(top)}
    classes, _ = list_folder(top)
    counts = []

    def names() -> Iterator[str]:
        with progress(f"indexing {root}") as done:
            for name in classes:
                images = _images_below(top, name, stamps)
                counts.append(len(images))
                done(len(images))
                yield from images

    packed = Strings.pack(names())
    if not classes:
        raise ValueError(
            f"{root} has no class folders such as {root}/<class>/1.jpg. It has: {found_in(root)}."
        )
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{len(empty)} class folder(s) in {root} have no image: {', '.join(empty[:5])}. Add "
            "images, or remove the folder."
        )
    index = {**packed.arrays("names"), **Strings.pack(classes).arrays("classes")}
    index["labels"] = np.repeat(np.arange(len(classes)), counts)
    return index, stamps


def _images_below(root: str, top: str, stamps: Stamps) -> list[str]:
    """Return the images in ``root/top`` and its subfolders, in ImageFolder's order."""
    found, pending = {}, [top]
    while pending:
        folder = pending.pop()
        path = f"{root}/{folder}"
        stamps[path] = stamp(path)
        below, files = list_folder(path)
        pending += [f"{folder}/{name}" for name in below]
        found[folder] = [f"{folder}/{name}" for name in files if is_image(name)]
    return [image for folder in sorted(found) for image in found[folder]]
