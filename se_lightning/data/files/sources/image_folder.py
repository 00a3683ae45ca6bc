"""Image folders with one folder per class, already split or to be split here; or shards."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.folders import class_folders, found_in, list_folder
from se_lightning.data.files.sources.shards import has_shards, shard_sources
from se_lightning.data.files.sources.source import Source

__all__ = ["folder_sources"]

log = logging.getLogger(__name__)

Indices = dict[str, np.ndarray]


def folder_sources(
    root: Path,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    split_by: str = "path",
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Find the images of a folder; return its "train", "val" and "test", and the class names.

    The folder contains shards; or ``root/train/<class>/*``, ``root/val/<class>/*`` and optionally
    ``root/test/<class>/*``; or ``root/<class>/*``, which is split here. Without a test set, the
    validation set is used.

    The split of an image is a function of its path below ``root`` and of ``split_seed``, whatever
    other images there are. So the fractions are met on average, not exactly.

    Args:
        root: The folder.
        val_fraction: Probability that an image is used for validation, if split here.
        test_fraction: The same for the test.
        split_seed: Seed of that split.
        split_by: ``"path"``; or ``"position"``, the split of version 0.1.0, which changes with the
            number of images.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has another layout, or the fractions leave a split without images.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root.absolute()} is not a folder. Put the images there, as "
            f"{root.name}/<class>/1.jpg, or set data.root to their folder."
        )
    if has_shards(root):
        sources, classes = shard_sources(root)
        if missing := [split for split in ("train", "val") if split not in sources]:
            raise ValueError(f"{root} has shards, but no {missing[0]}-*.tar.")
    else:
        folders, _ = list_folder(root)
        if {"train", "val"} <= set(folders):
            splits = [split for split in ("train", "val", "test") if split in folders]
            sources, classes = _in_splits(root, splits)
        elif "train" in folders and list_folder(root / "train")[0]:
            raise ValueError(
                f"{root} has train/ with folders, but no val/. It has: {found_in(root)}. Put the "
                "classes into root/train and root/val (and root/test), or all into root."
            )
        else:
            sources, classes = _cut(root, val_fraction, test_fraction, split_seed, _CUTS[split_by])
    sources.setdefault("test", sources["val"])
    return sources, classes


def _in_splits(root: Path, splits: Sequence[str]) -> tuple[dict[str, Source], tuple[str, ...]]:
    sources: dict[str, Source] = {}
    classes: tuple[str, ...] = ()
    for split in splits:
        sources[split], names = class_folders(root / split)
        classes = classes or names
        if differing := sorted(set(names) ^ set(classes)):
            raise ValueError(
                f"{root / 'train'} and {root / split} must have the same class folders; only one "
                f"of them has: {', '.join(differing[:5])}{', ...' if differing[5:] else ''}."
            )
    return sources, classes


def _cut(
    root: Path,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    cut: Callable[..., Indices],
) -> tuple[dict[str, Source], tuple[str, ...]]:
    if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"`val_fraction` (={val_fraction}) must be above 0, `test_fraction` "
            f"(={test_fraction}) at least 0, and their sum below 1."
        )
    source, classes = class_folders(root)
    if cut is _by_position:
        log.warning(
            "%s is split as in version 0.1.0, whose checkpoints have no record of their images. If "
            "images were added or removed since, the tests include some that were trained on.",
            root,
        )
    indices = cut(source, val_fraction, test_fraction, split_seed)
    if not test_fraction:
        del indices["test"]
    for split, some in indices.items():
        present = np.bincount(source.labels[some], minlength=len(classes)) > 0
        lacking = [name for name, there in zip(classes, present, strict=True) if not there]
        if lacking:
            _lacks(root, split, lacking, empty=not len(some))
    return {split: source.subset(some) for split, some in indices.items()}, classes


def _lacks(root: Path, split: str, classes: Sequence[str], *, empty: bool) -> None:
    """Refuse a split without images, and classes without training images; else warn."""
    names = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if classes[5:] else "")
    if empty or split == "train":
        raise ValueError(
            f"The split of {root} leaves no {split} images{'' if empty else f' of {names}'}. Add "
            "images, change data.val_fraction, data.test_fraction or data.split_seed, or put the "
            "images into root/train, root/val and root/test."
        )
    log.warning("The split of %s leaves no %s images of %s.", root, split, names)


def _by_path(source: Source, val_fraction: float, test_fraction: float, split_seed: int) -> Indices:
    hashes = source.path_hashes(split_seed)
    assert hashes is not None  # they are files
    places = (hashes >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    ends = [val_fraction, val_fraction + test_fraction]
    splits = np.searchsorted(ends, places, side="right")
    return {name: np.flatnonzero(splits == i) for i, name in enumerate(("val", "test", "train"))}


def _by_position(
    source: Source, val_fraction: float, test_fraction: float, split_seed: int
) -> Indices:
    """Split as version 0.1.0 did, for its checkpoints."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    ends = np.cumsum(np.bincount(source.labels))  # images are sorted by class
    for label, images in enumerate(np.split(np.arange(len(source)), ends[:-1])):
        order = np.random.default_rng((split_seed, label)).permutation(images)
        val = max(1, round(val_fraction * len(images)))
        test = max(1, round(test_fraction * len(images))) if test_fraction else 0
        parts["val"].append(order[:val])
        parts["test"].append(order[val : val + test])
        parts["train"].append(order[val + test :])
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


_CUTS: dict[str, Callable[..., Indices]] = {"path": _by_path, "position": _by_position}
