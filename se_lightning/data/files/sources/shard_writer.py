"""Writing of shards, which resumes after an interruption."""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from se_lightning.atomic import atomic_path, write_text
from se_lightning.data.files.sources.progress import progress
from se_lightning.data.files.sources.shards import PARTIAL, RECORD, has_shards, read_record
from se_lightning.data.files.sources.source import Source

__all__ = ["write_shards"]

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = tarfile.BLOCKSIZE


def write_shards(
    sources: Mapping[str, Source],
    class_names: Sequence[str],
    output: Path,
    *,
    shard_mb: int = 300,
) -> list[Path]:
    """Write images as WebDataset shards, ``<split>-000000.tar`` ...; return their paths.

    A shard contains the unchanged image files, ``000000000.jpg`` ..., each with its label in
    digits, ``000000000.cls``. ``shards.json`` is written last and lists all shards. A second call
    resumes after the last complete shard, and writes the same bytes as an uninterrupted call.

    Args:
        sources: Images of each split; a split that repeats another one ("test" as "val") is left
            out.
        class_names: Class names by label.
        output: Folder, created if missing.
        shard_mb: Maximum size of a shard of several images, MB (10^6 bytes).

    Raises:
        ValueError: If the folder has shards of other images.
        OSError: If the disk is full, or a file cannot be read.
    """
    if shard_mb < 1:
        raise ValueError(f"`shard_mb` (={shard_mb}) must be at least 1.")
    distinct: dict[str, Source] = {}
    for split, source in sources.items():
        if all(source is not other for other in distinct.values()):
            distinct[split] = source
    record = _resume(output, distinct, class_names, shard_mb)
    if (output / RECORD).is_file() and not _left(distinct, record):
        log.info("The shards in %s are complete: nothing to do.", output)
    else:
        _write(output, distinct, record, shard_mb * 10**6)
    return [output / shard["name"] for shards in record["splits"].values() for shard in shards]


def _resume(
    output: Path, sources: Mapping[str, Source], class_names: Sequence[str], shard_mb: int
) -> dict:
    """Return the record of the complete shards, in each split up to the first missing one."""
    fingerprint = _fingerprint(sources, class_names, shard_mb)
    path = next((output / name for name in (RECORD, PARTIAL) if (output / name).is_file()), None)
    record: dict = {
        "format": 1,
        "class_names": list(class_names),
        "fingerprint": fingerprint,
        "splits": {split: [] for split in sources},
    }
    if path is not None:
        record = read_record(path)
    if record.get("fingerprint") != fingerprint or (path is None and has_shards(output)):
        raise ValueError(
            f"{output} has shards with other images, labels, class names or `shard_mb`. Choose "
            "another folder, or empty this one."
        )
    for split, shards in record["splits"].items():
        whole = [_has_size(output / shard["name"], shard["bytes"]) for shard in shards]
        record["splits"][split] = shards[: [*whole, False].index(False)]
    return record


def _fingerprint(sources: Mapping[str, Source], class_names: Sequence[str], shard_mb: int) -> str:
    digest = hashlib.sha256(json.dumps([list(sources), list(class_names), shard_mb]).encode())
    for source in sources.values():
        digest.update(source.labels.astype("<i8").tobytes())
        for index in range(len(source)):
            digest.update(os.fsencode(source.name(index)) + b"\0")
    return digest.hexdigest()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _left(sources: Mapping[str, Source], record: dict) -> dict[str, int]:
    """Return the first unwritten image of each incomplete split."""
    written = {
        split: sum(shard["samples"] for shard in shards)
        for split, shards in record["splits"].items()
    }
    return {split: start for split, start in written.items() if start < len(sources[split])}


def _write(output: Path, sources: Mapping[str, Source], record: dict, limit: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    _write_record(output / PARTIAL, record)
    left = _left(sources, record)
    total = sum(len(sources[split]) - start for split, start in left.items())
    with progress(f"writing shards to {output}", unit="images", total=total) as done:
        for split, start in left.items():
            shards = record["splits"][split]
            while start < len(sources[split]):
                path = output / f"{split}-{len(shards):06d}.tar"
                try:
                    samples = _write_shard(path, sources[split], start, limit)
                except OSError as error:
                    if error.errno in _FULL:
                        raise OSError(_full(output, sources, record)) from error
                    raise
                shards.append({"name": path.name, "samples": samples, "bytes": path.stat().st_size})
                _write_record(output / PARTIAL, record)
                start += samples
                done(samples)
    _write_record(output / RECORD, record)
    (output / PARTIAL).unlink()


def _write_shard(path: Path, source: Source, start: int, limit: int) -> int:
    """Write one shard atomically; return the number of its images."""
    with (
        atomic_path(path, durable=True, sole_writer=True) as temporary,
        tarfile.open(temporary, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in range(start, len(source)):
            content = source.read(index)
            end = tar.offset + _room(len(content)) + tarfile.RECORDSIZE
            if index > start and end > limit:
                break
            extension = os.path.splitext(source.name(index))[1].lower()
            extension = ".jpg" if extension == ".jpeg" else extension
            _add(tar, f"{index:09d}{extension}", content)
            _add(tar, f"{index:09d}.cls", b"%d" % source.labels[index])
            samples = index + 1 - start
    return samples


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, owner and group are 0, for reproducible bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _room(size: int) -> int:
    """Return the bytes that an image and its label take in a shard."""
    return 3 * _BLOCK + -(-size // _BLOCK) * _BLOCK


def _full(output: Path, sources: Mapping[str, Source], record: dict) -> str:
    needed = 0.0
    for split, start in _left(sources, record).items():
        left = len(sources[split]) - start
        some = np.linspace(start, len(sources[split]) - 1, min(left, 100)).astype(int)
        needed += left * float(np.mean([_room(len(sources[split].read(i))) for i in some]))
    free = shutil.disk_usage(output).free
    return (
        f"The disk of {output} is full: about {_size(needed)} of shards remain to be written, "
        f"and {_size(free)} are free. Make space and rerun the same command, which resumes "
        "after the last complete shard."
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.1f} MB"


def _write_record(path: Path, record: dict) -> None:
    write_text(path, json.dumps(record, indent=1), durable=True)
