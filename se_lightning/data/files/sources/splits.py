"""Finding the splits of an image folder by the names that people give them."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from se_lightning.data.files.sources.folders import found_in, is_image, list_folder
from se_lightning.ranks import is_further_rank

__all__ = ["find_splits"]

log = logging.getLogger(__name__)

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Also train_set, "Training Images", test-data and so on.
_NAME = re.compile(rf"({'|'.join(_WORDS)})[ _-]?(?:set|data|images|split)?", re.IGNORECASE)
_SAMPLE = 10  # folders that are compared, since listing 1000 classes takes seconds on a server
_WAY_OUT = (
    "Put the classes into {root}/train/<class>, {root}/val/<class> and {root}/test/<class>; or, to "
    "have the images split, all into {root}/<class>."
)


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for, if it is one of the usual names.

    Example:
        >>> split_of("Training"), split_of("VALID"), split_of("test_set"), split_of("latest")
        ('train', 'val', 'test', None)
    """
    match = _NAME.fullmatch(name)
    return _WORDS[match[1].lower()] if match else None


def find_splits(root: Path) -> tuple[Path, dict[str, Path]]:
    """Find the folders of the splits in a folder, or the folder of its classes.

    The splits are folders called train or training; val, valid or validation; test or testing, in
    any case. They may be one or two folders further down, as in many archives. A folder with such
    a name is a class instead if it has images but no class folders, and other classes are beside
    it; this is logged.

    Returns:
        The folder that has the splits or the classes, and the folder of each split: "train" and
        some of "val" and "test", or none.

    Raises:
        ValueError: If folders look like splits, but it is unclear which is which.
    """
    root = _below(root)
    folders, _ = list_folder(root)
    named = [name for name in folders if split_of(name)]
    if not named:
        _check_classes(root, folders)
        return root, {}
    others = [n for n in folders if n not in named and _has_images(root / n)]
    splits = _named_splits(root, named)
    if "train" in splits and (len(splits) > 1 or not others):
        unread = sorted({*others, *named} - {path.name for path in splits.values()})
        _tell(root, splits, [name for name in unread if _has_images(root / name)])
        train = _below(splits["train"])
        classes = set(list_folder(train)[0])
        return root, {"train": train} | {
            split: path if classes.intersection(list_folder(path)[0]) else _below(path)
            for split, path in splits.items()
            if split != "train"
        }
    below = {name for path in splits.values() for name in list_folder(path)[0]}
    if not others or "train" in splits or below & set(others):
        raise ValueError(_unclear(root, named, splits, others))
    if not is_further_rank():
        log.warning(
            "%s read as a class of %s, like %s. If it is a split: %s",
            f"{_listed(named)} is" if len(named) == 1 else f"{_listed(named)} are each",
            root,
            _listed(others),
            _WAY_OUT.format(root=root.name),
        )
    return root, {}


def _below(folder: Path) -> Path:
    """Return the folder inside, if there is nothing but one folder of folders."""
    for _ in range(2):
        folders, files = list_folder(folder)
        inside = folder / folders[0] if len(folders) == 1 else folder
        alone = inside != folder and not any(map(is_image, files))
        # A split within a folder that is no split belongs to that folder.
        if not alone or (split_of(inside.name) and not split_of(folder.name)):
            return folder
        below, images = list_folder(inside)
        if not below or any(map(is_image, images)):
            return folder
        folder = inside
    return folder


def _has_images(folder: Path) -> bool:
    folders, files = list_folder(folder)
    return any(map(is_image, files)) or any(_has_images(folder / name) for name in folders)


def _named_splits(root: Path, named: Iterable[str]) -> dict[str, Path]:
    """Return the named folders that have class folders, by split."""
    splits: dict[str, Path] = {}
    for name in named:
        if not list_folder(root / name)[0]:
            continue
        other = splits.setdefault(split_of(name) or "", root / name)
        if other.name != name:
            raise ValueError(
                f"{root} has both {other.name}/ and {name}/ for the {split_of(name)} images. Merge "
                "them, or move one away."
            )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _tell(root: Path, splits: Mapping[str, Path], unread: Sequence[str]) -> None:
    """Log splits with other names than ours, and folders of images that are not read."""
    if is_further_rank():
        return
    if any(split != path.name for split, path in splits.items()):
        roles = ", ".join(f"{split}={path.name}/" for split, path in splits.items())
        log.info("splits of %s: %s", root, roles)
    if unread:
        log.warning(
            "Not read in %s: %s, since %s not a split with class folders.",
            root,
            _listed(unread),
            "it is" if len(unread) == 1 else "they are",
        )


def _unclear(
    root: Path, named: Sequence[str], splits: Mapping[str, Path], others: Sequence[str]
) -> str:
    """Say why named folders are neither splits nor classes."""
    if others:
        what = f"{_listed([path.name for path in splits.values()])} with folders of their own"
        problem = f"{what}, next to {_listed(others)}: these may be splits or classes."
    elif "train" in map(split_of, named):
        flat = [name for name in named if root / name not in splits.values()]
        problem = f"{_listed(flat)} without class folders."
    else:
        problem = f"{_listed(named)}, but no train/."
    return f"{root} has {problem} It has: {found_in(root)}. {_WAY_OUT.format(root=root.name)}"


def _check_classes(root: Path, folders: Sequence[str]) -> None:
    """Refuse class folders that look like splits or data sets, and warn if they look alike."""
    hints = {name: splits for name in folders if (splits := _splits_in(name))}
    below = {name: _class_names(root / name) for name in {*folders[:_SAMPLE], *hints}}
    for name, inside in below.items():
        if len(splits := {split for each in inside if (split := split_of(each))}) > 1:
            raise ValueError(
                f"{root / name} has splits itself ({', '.join(sorted(splits))}), so it is not a "
                f"class. Set data.root={root / name}. {_WAY_OUT.format(root=root.name)}"
            )
    if len(set().union(*hints.values())) > 1 and any(below[name] for name in hints):
        raise ValueError(
            f"{_listed(list(hints))} in {root} look like splits, not like classes. Rename them to "
            f"train, val and test. {_WAY_OUT.format(root=root.name)}"
        )
    nested = {name: inside for name, inside in sorted(below.items()) if inside}
    common = set.intersection(*nested.values()) if len(nested) > 1 else set()
    if len(common) > 1 and not is_further_rank():
        log.warning(
            "The classes of %s are %s, though each of them has the folders %s. If those are the "
            "classes: %s",
            root,
            _listed(folders),
            _listed(sorted(common)),
            _WAY_OUT.format(root=root.name),
        )


def _splits_in(name: str) -> set[str]:
    """Return the splits that are named by a word of a name, such as ``seg_train``."""
    words = re.split(r"[\W\d_]+", name.lower())
    return {_WORDS[word] for word in words if word in _WORDS}


def _class_names(folder: Path) -> set[str]:
    """Return the folders in a folder that has no images itself."""
    inside, files = list_folder(_below(folder))
    return set() if any(map(is_image, files)) else set(inside)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
