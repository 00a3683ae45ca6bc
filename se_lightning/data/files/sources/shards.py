"""Shards: tar archives of images with their labels, in WebDataset's format."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from se_lightning.data.files.sources.folders import is_image
from se_lightning.data.files.sources.index import Arrays, Stamps, cached_index, stamp
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.source import Source
from se_lightning.data.files.sources.tars import Member, OpenTar, pack_members, tar_source

__all__ = ["PARTIAL", "RECORD", "has_shards", "read_record", "shard_names", "shard_sources"]

RECORD = "shards.json"  # what write_shards wrote
PARTIAL = "shards.partial.json"  # what it has written so far

_SPLITS = ("train", "val", "test")
# WebDataset's own rule: the key ends at the first dot of the last component.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)(\.[^/]*)")


def has_shards(root: Path) -> bool:
    """Tell whether there are shards in a folder, finished or not."""
    recorded = any((root / name).is_file() for name in (RECORD, PARTIAL))
    return recorded or any(shard_names(root, split) for split in _SPLITS)


def shard_names(root: Path, split: str) -> list[str]:
    """Return the sorted names of the shards of a split that are there."""
    return sorted(path.name for path in root.glob(f"{split}-*.tar"))


def shard_sources(
    root: Path, splits: Sequence[str] | None = None
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Index the shards of a folder; return a source a split, and the names of the classes.

    With ``shards.json`` all must be there as it says. Without, any ``train-*.tar``, ``val-*.tar``
    and ``test-*.tar`` are taken whose members are ``<key>.jpg`` (or .png ...) with ``<key>.cls``;
    their classes are then called "0", "1" ...

    Args:
        root: the folder.
        splits: which ones; all that are there if None.

    Raises:
        ValueError: naming the shard that is missing, damaged, or not of this format.
    """
    record = _record(root)
    there = [split for split in _SPLITS if shard_names(root, split)]
    splits = splits or (list(record["splits"]) if record else there)
    if not splits:
        raise ValueError(f"{root} has no shards, {' or '.join(f'{s}-*.tar' for s in _SPLITS)}.")
    for split in splits:
        if record:
            _check(root, split, record["splits"].get(split, []))
        if split not in there:
            raise ValueError(f"{root} has shards, but none of the split {split}: {split}-*.tar.")
    sources = {split: _source(root, split) for split in splits}
    classes = 1 + max(int(source.labels.max(initial=-1)) for source in sources.values())
    names = tuple(record["class_names"]) if record else tuple(map(str, range(classes)))
    if classes > len(names):
        raise ValueError(
            f"The shards in {root} have a label of {classes - 1}, {RECORD} only {len(names)} "
            "classes: they do not belong together. Copy the folder again."
        )
    return sources, names


def read_record(path: Path) -> dict:
    """Read ``shards.json``, or what there is of it so far.

    Raises:
        ValueError: if it is damaged, or of a format to come.
    """
    try:
        record = json.loads(path.read_text())
        version = record["format"]
        if version == 1:
            _ = record["class_names"]
            for shard in itertools.chain(*record["splits"].values()):
                _ = shard["name"], shard["samples"], shard["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Copy it again, or empty the "
            "folder and write the shards again."
        ) from error
    if version != 1:
        raise ValueError(f"{path} is of format {version!r}; this release knows 1.")
    return record


def _record(root: Path) -> dict | None:
    if (root / RECORD).is_file():
        return read_record(root / RECORD)
    if (root / PARTIAL).is_file():
        raise ValueError(
            f"The shards in {root} are unfinished. Call the command that wrote them again: it "
            "goes on where it stopped."
        )
    return None


def _check(root: Path, split: str, shards: list[dict]) -> None:
    """Compare the shards of a split with what is recorded of them."""
    recorded = {shard["name"]: shard["bytes"] for shard in shards}
    there = {name: (root / name).stat().st_size for name in shard_names(root, split)}
    wrong = [f"{name} is missing" for name in recorded if name not in there]
    wrong += [f"{name} is not in {RECORD}" for name in there if name not in recorded]
    wrong += [
        f"{name} has {there[name]:,} bytes, not {size:,}"
        for name, size in recorded.items()
        if there.get(name, size) != size
    ]
    if wrong:
        rest = f", and {len(wrong) - 5} more such" if len(wrong) > 5 else ""
        raise ValueError(
            f"The shards in {root} are not those that were written: {'; '.join(wrong[:5])}{rest}. "
            "Copy them again, remove what is not theirs, or write them again with the command "
            "that did, which makes good what is missing."
        )


def _source(root: Path, split: str) -> Source:
    index = cached_index(root, f"shards {split}", partial(_scan, root, split))
    return tar_source([root / name for name in shard_names(root, split)], index)


def _scan(root: Path, split: str) -> tuple[Arrays, Stamps]:
    # The folder, because another shard would change the list.
    stamps = {path: stamp(path) for path in [str(root.absolute())]}
    shards = [root / name for name in shard_names(root, split)]
    stamps |= {str(path.absolute()): stamp(str(path)) for path in shards}

    def samples() -> Iterator[tuple[int, Member, int]]:
        total = sum(path.stat().st_size for path in shards)
        task = f"indexing {len(shards)} shards of {split} in {root}"
        with progress(task, unit="bytes", total=total) as done:
            for number, path in enumerate(shards):
                for member, label in _samples(path):
                    yield number, member, label
                done(path.stat().st_size)

    return pack_members(samples()), stamps


def _samples(shard: Path) -> Iterator[tuple[Member, int]]:
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    with OpenTar(shard) as tar:
        for member in tar.members():
            match = _MEMBER.fullmatch(member.name)
            key, extension = match.groups() if match else (member.name, "")
            if extension == ".cls":
                content = tar.read(member)
                if not content.strip().isdigit():
                    raise ValueError(
                        f"{shard}: {member.name} must be a class, 0 or more in digits; it is "
                        f"{content[:20]!r}."
                    )
                labels[key] = int(content)
            elif is_image(extension):
                if key in images:
                    raise ValueError(f"{shard} has two images of the key {key!r}.")
                images[key] = member
    if lone := sorted(images.keys() ^ labels.keys()):
        has, lacks = ("image", "class (.cls)") if lone[0] in images else ("class (.cls)", "image")
        raise ValueError(f"{shard} has {len(lone)} {has} without {lacks}, {lone[0]!r} for one.")
    return ((images[key], labels[key]) for key in images)
