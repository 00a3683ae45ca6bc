"""Image folders with one folder per class, already split or to be split here; or shards."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from se_lightning.data.files.sources.folders import ClassFolders, class_folders, tell_left_out
from se_lightning.data.files.sources.shards import has_shards, shard_sources
from se_lightning.data.files.sources.source import Source
from se_lightning.data.files.sources.splits import find_splits

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

    The folder contains shards; or ``root/train/<class>/*`` and some of ``root/val/<class>/*`` and
    ``root/test/<class>/*``; or ``root/<class>/*``, which is split here. See
    :func:`se_lightning.data.files.sources.splits.find_splits` for other names of the splits.
    Without a validation set, a part of the training images is used, and without a test set, the
    validation set, unless the test images are split off here as well. The folders of train name
    the classes; the other splits may lack some.

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
        root, splits = find_splits(root)
        cut = _Cut(val_fraction, test_fraction, split_seed, _CUTS[split_by])
        sources, classes = _in_splits(root, splits, cut) if splits else cut(root)
    sources.setdefault("test", sources["val"])
    return sources, classes


class _Cut(NamedTuple):
    """How the images of one folder are split."""

    val_fraction: float
    test_fraction: float
    seed: int
    by: Callable[..., Indices]

    def __call__(self, root: Path) -> tuple[dict[str, Source], tuple[str, ...]]:
        found = class_folders(root)
        tell_left_out(root, found.left_out)
        return self.cut(root, found), found.classes

    def cut(self, root: Path, found: ClassFolders) -> dict[str, Source]:
        """Split the images found in a folder."""
        val, test = self.val_fraction, self.test_fraction
        if not (val > 0 and test >= 0 and val + test < 1):
            raise ValueError(
                f"`val_fraction` (={val}) must be above 0, `test_fraction` (={test}) at least 0, "
                "and their sum below 1."
            )
        if self.by is _by_position:
            log.warning(
                "%s is split as in version 0.1.0, whose checkpoints have no record of their "
                "images. If images were added or removed since, the tests include some that were "
                "trained on.",
                root,
            )
        indices = self.by(found.source, val, test, self.seed)
        if not test:
            del indices["test"]
        elif not len(indices["test"]) and len(indices["val"]):
            log.warning(
                "The split of %s leaves no test images, so the validation images are used. Add "
                "images, or change data.test_fraction or data.split_seed.",
                root,
            )
            del indices["test"]
        for split, some in indices.items():
            if lacking := _lacking(found.source.labels[some], found.classes):
                _lacks(root, split, lacking, empty=not len(some))
        return {split: found.source.subset(some) for split, some in indices.items()}


def _in_splits(
    root: Path, splits: Mapping[str, Path], cut: _Cut
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Index splits; without validation images, a part of the training images is used."""
    train = class_folders(splits["train"])
    left_out = train.left_out.copy()
    sources: dict[str, Source] = {"train": train.source}
    for split, folder in splits.items():
        if split == "train":
            continue
        found = class_folders(folder, train.classes)
        left_out += found.left_out
        if not len(found.source):
            raise ValueError(f"{folder} has no images. Add images, or remove the folder.")
        if lacking := _lacking(found.source.labels, train.classes):
            log.warning("%s has no images of %s.", folder, _named(lacking))
        sources[split] = found.source
    tell_left_out(root, left_out)
    if "val" not in splits:
        rest = cut._replace(test_fraction=0.0) if "test" in splits else cut
        sources |= rest.cut(splits["train"], train)
    return sources, train.classes


def _lacking(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the classes without images."""
    present = np.bincount(labels, minlength=len(classes)) > 0
    return [name for name, there in zip(classes, present, strict=True) if not there]


def _lacks(root: Path, split: str, classes: Sequence[str], *, empty: bool) -> None:
    """Refuse a split without images, and classes without training images; else warn."""
    names = _named(classes)
    if empty or split == "train":
        raise ValueError(
            f"The split of {root} leaves no {split} images{'' if empty else f' of {names}'}. Add "
            "images, change data.val_fraction, data.test_fraction or data.split_seed, or put the "
            "images into root/train, root/val and root/test."
        )
    log.warning("The split of %s leaves no %s images of %s.", root, split, names)


def _named(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if classes[5:] else "")


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
