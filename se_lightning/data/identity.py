"""The identity of a run's data: saved in its checkpoints and compared with what is found later."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from se_lightning.lightning import MisconfigurationException

__all__ = ["IdentifiedData", "Identity", "digest"]

log = logging.getLogger(__name__)


def digest(*parts: np.ndarray) -> str:
    """Return a digest of the bytes of arrays.

    Example:
        >>> digest(np.zeros(3)) == digest(np.zeros(2), np.zeros(1))
        True
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()[:32]


class Identity:
    """The classes and images of a checkpoint, to compare with those of a datamodule.

    Args:
        record: Entry ``data`` of a datamodule's state in a checkpoint: ``class_names``, and
            ``splits``, the fingerprint of each split.
        strict: Whether other images are an error; otherwise they are a warning. Other classes are
            always an error.
        remedy: What to do about other images, for the message.

    Raises:
        ValueError: If the record is damaged.
    """

    def __init__(self, record: Mapping[str, Any], *, strict: bool, remedy: str) -> None:
        if not _is_whole(record):
            raise ValueError(
                "The checkpoint's record of its data is damaged. Use another checkpoint."
            )
        self.class_names: list[str] = record["class_names"]
        self.splits: dict[str, dict[str, Any]] = record["splits"]
        self.strict, self.remedy = strict, remedy

    def check_classes(self, found: Sequence[str]) -> None:
        """Compare the class names.

        Raises:
            MisconfigurationException: If they differ.
        """
        here, there = list(found), self.class_names
        if here == there:
            return
        missing, added = (
            ", ".join(name for name in some if name not in others) or "none"
            for some, others in ((there[:1000], here), (here[:1000], there))
        )
        raise MisconfigurationException(
            f"The data set does not have the {len(there)} classes of the checkpoint, so its labels "
            f"mean other classes (missing: {_short(missing)}; new: {_short(added)}). Restore the "
            "names and the order of the classes, or train a new network."
        )

    def check_split(self, split: str, found: Mapping[str, Any]) -> None:
        """Compare the fingerprint of a split, as far as both have the same entries.

        Raises:
            MisconfigurationException: If they differ and ``strict`` is set.
        """
        saved = self.splits.get(split, {})
        if all(saved[key] == found[key] for key in saved.keys() & found.keys()):
            return
        here, there = found["images"], saved["images"]
        what = f"{here} instead of {there}" if here != there else f"{here} as before, but others"
        text = f"The {split} images are not those of the checkpoint: {what}."
        if self.strict:
            raise MisconfigurationException(f"{text} {self.remedy}")
        log.warning("%s", text)


def _is_whole(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("class_names"), list):
        return False
    splits = record.get("splits")
    return isinstance(splits, dict) and all(
        isinstance(each, dict) and "images" in each for each in splits.values()
    )


def _short(names: str) -> str:
    return names if len(names) <= 100 else names[:100] + " ..."


class IdentifiedData:
    """The part of a datamodule that compares its data with those of a checkpoint."""

    class_names: Sequence[str]
    _fingerprints: dict[str, dict[str, Any]]
    _identity: Identity | None = None  # of a checkpoint's data

    def labels(self, split: str) -> np.ndarray:
        """Return the labels (N,) of ``train``, ``val`` or ``test``."""
        raise TypeError(f"{type(self).__name__} must define `labels`.")

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Return the number of images of a split, and digests to compare where both have them."""
        labels = self.labels(split)
        return {"images": len(labels), "labels": digest(labels.astype("<i8"))}

    def expect(self, state: Mapping[str, Any], *, strict: bool, remedy: str = "") -> None:
        """Compare the data with those of a checkpoint, now and when more splits are found.

        Args:
            state: The datamodule's state in the checkpoint.
            strict: Whether other images are an error or a warning; other classes are an error.
            remedy: What to do about other images, for the message.

        Raises:
            ValueError: If the state is damaged.
            MisconfigurationException: If the data differ.
        """
        if "data" in state:  # missing in checkpoints of version 0.1.0
            self._identity = Identity(state["data"], strict=strict, remedy=remedy)
            self._compare(self._splits_found())

    def _compare(self, splits: Iterable[str]) -> None:
        """Compare splits, which have been found, with those of the checkpoint."""
        if self._identity is None:
            return
        for split in splits:
            self._identity.check_classes(self.class_names)
            self._identity.check_split(split, self._fingerprint(split))

    def _fingerprint(self, split: str) -> dict[str, Any]:
        if split not in self._fingerprints:
            self._fingerprints[split] = self.fingerprint(split)
        return self._fingerprints[split]

    def _splits_found(self) -> Sequence[str]:
        """Return the splits whose labels are known already."""
        return ()
