"""Image folders with one folder per class, already split or to be split here; or shards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from se_lightning.data.files.sources.folders import class_folders, found_in, list_folder
from se_lightning.data.files.sources.shards import has_shards, shard_sources
from se_lightning.data.files.sources.source import Source

__all__ = ["folder_sources"]


def folder_sources(
    root: Path, *, val_fraction: float, test_fraction: float, split_seed: int
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Find the images of a folder; return its "train", "val" and "test", and the class names.

    The folder contains shards; or ``root/train/<class>/*``, ``root/val/<class>/*`` and optionally
    ``root/test/<class>/*``; or ``root/<class>/*``, which is split here, class by class. Without a
    test set, the validation set is used.

    Args:
        root: The folder.
        val_fraction: Fraction of each class for validation, if split here.
        test_fraction: Fraction of each class for the test, if split here.
        split_seed: Seed of that split.

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
            sources, classes = _cut(root, val_fraction, test_fraction, split_seed)
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
    root: Path, val_fraction: float, test_fraction: float, split_seed: int
) -> tuple[dict[str, Source], tuple[str, ...]]:
    if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"`val_fraction` (={val_fraction}) must be above 0, `test_fraction` "
            f"(={test_fraction}) at least 0, and their sum below 1."
        )
    source, classes = class_folders(root)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    ends = np.cumsum(np.bincount(source.labels))  # images are sorted by class
    for label, images in enumerate(np.split(np.arange(len(source)), ends[:-1])):
        # One generator per class: more images in one class do not change the split of others.
        order = np.random.default_rng((split_seed, label)).permutation(images)
        val = max(1, round(val_fraction * len(images)))
        test = max(1, round(test_fraction * len(images))) if test_fraction else 0
        if val + test >= len(images):
            raise ValueError(
                f"The class {classes[label]} in {root} has {len(images)} image(s), too few "
                f"to validate on {val}, test on {test} and train. Add images, or remove the folder."
            )
        parts["val"].append(order[:val])
        parts["test"].append(order[val : val + test])
        parts["train"].append(order[val + test :])
    indices = {split: np.sort(np.concatenate(part)) for split, part in parts.items()}
    return {split: source.subset(some) for split, some in indices.items() if len(some)}, classes
