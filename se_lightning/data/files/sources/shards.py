"""Shards: tar archives of images and labels in WebDataset's format."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from se_lightning.data.files.sources.folders import is_image
from se_lightning.data.files.sources.index import MAX_CLASSES, Arrays, Stamps, cached_index, stamp
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.source import Source
from se_lightning.data.files.sources.tars import Member, OpenTar, pack_members, tar_source

__all__ = ["PARTIAL", "RECORD", "has_shards", "read_record", "shard_names", "shard_sources"]

RECORD = "shards.json"  # written by write_shards at the end
PARTIAL = "shards.partial.json"  # written by write_shards after each shard

_SPLITS = ("train", "val", "test")
# As in WebDataset, the key ends at the first dot of the last component.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)(\.[^/]*)")


def has_shards(root: Path) -> bool:
    """Return whether a folder has shards, finished or not."""
    recorded = any((root / name).is_file() for name in (RECORD, PARTIAL))
    return recorded or any(shard_names(root, split) for split in _SPLITS)


def shard_names(root: Path, split: str) -> list[str]:
    """Return the sorted names of the shards of a split."""
    return sorted(path.name for path in root.glob(f"{split}-*.tar"))


def shard_sources(
    root: Path, splits: Sequence[str] | None = None
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Index the shards of a folder; return one source per split, and the class names.

    With ``shards.json``, all shards listed there are required. Without it, any ``train-*.tar``,
    ``val-*.tar`` and ``test-*.tar`` with members ``<key>.jpg`` (or .png ...) and ``<key>.cls`` are
    used, and the classes are called "0", "1" ...

    Args:
        root: The folder.
        splits: Splits to index; None for all.

    Raises:
        ValueError: If a shard is missing, damaged, or in another format.
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
            raise ValueError(f"{root} has shards, but no {split}-*.tar.")
    sources = {split: _source(root, split) for split in splits}
    classes = 1 + max(int(source.labels.max(initial=-1)) for source in sources.values())
    names = tuple(record["class_names"]) if record else tuple(map(str, range(classes)))
    if classes > len(names):
        raise ValueError(
            f"The shards in {root} have the label {classes - 1}, but {RECORD} has only "
            f"{len(names)} classes. Copy the folder again."
        )
    return sources, names


def read_record(path: Path) -> dict:
    """Read ``shards.json`` or ``shards.partial.json``.

    Raises:
        ValueError: If it is damaged, or has an unknown format.
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
        raise ValueError(f"{path} has the format {version!r}; this release reads format 1.")
    return record


def _record(root: Path) -> dict | None:
    if (root / RECORD).is_file():
        return read_record(root / RECORD)
    if (root / PARTIAL).is_file():
        raise ValueError(
            f"The shards in {root} are unfinished. Rerun the command that wrote them; it resumes "
            "where it stopped."
        )
    return None


def _check(root: Path, split: str, shards: list[dict]) -> None:
    """Compare the shards of a split with the record."""
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
        rest = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"The shards in {root} do not match {RECORD}: {'; '.join(wrong[:5])}{rest}. Copy them "
            "again, remove other files, or rerun the command that wrote them, which adds what is "
            "missing."
        )


def _source(root: Path, split: str) -> Source:
    index = cached_index(root, f"shards {split}", partial(_scan, root, split))
    return tar_source([root / name for name in shard_names(root, split)], index)


def _scan(root: Path, split: str) -> tuple[Arrays, Stamps]:
    # The folder too, because a new shard changes the list.
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
                labels[key] = _label(shard, tar, member)
            elif extension and is_image(member.name):
                if key in images:
                    raise ValueError(f"{shard} has two images with the key {key!r}.")
                images[key] = member
    if lone := sorted(images.keys() ^ labels.keys()):
        has, lacks = ("image", "class (.cls)") if lone[0] in images else ("class (.cls)", "image")
        raise ValueError(f"{shard} has {len(lone)} {has} without {lacks}, such as {lone[0]!r}.")
    return ((images[key], labels[key]) for key in images)


def _label(shard: Path, tar: OpenTar, member: Member) -> int:
    content = tar.read(member._replace(size=min(member.size, 20)))
    if member.size > 20 or not content.strip().isdigit() or int(content) >= MAX_CLASSES:
        raise ValueError(
            f"{shard}: {member.name} must be a label in digits below {MAX_CLASSES:,}, but it is "
            f"{content!r}{' ...' if member.size > 20 else ''}."
        )
    return int(content)
