"""Errors as one clear message for people and one kind for programs."""

import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from se_lightning.ranks import Interrupted

__all__ = ["Failure", "JobError", "Kind", "RankError", "explain", "is_interrupt", "is_user_error"]

Kind = Literal["user_error", "out_of_memory", "non_finite", "rank_lost", "interrupted", "bug"]

_USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)
# By name, so that these libraries are not imported just to recognize their errors.
_USER_ERRORS_ELSEWHERE = (
    ("lightning_fabric.utilities.exceptions", "MisconfigurationException"),
    ("yaml", "YAMLError"),
)


@dataclass(frozen=True)
class Failure:
    """Why a run failed. Ranks and processes exchange it and act on its ``kind``.

    Attributes:
        error: The message.
        kind: What went wrong.
        details: Data of the failure, e.g. the batch size that was too large.
        traceback: Traceback of a failure that is not a user error.
    """

    error: str
    kind: Kind
    details: Mapping[str, Any] = field(default_factory=dict)
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Describe an error, with its attributes ``kind`` and ``details`` if it has them.

        The traceback of a user error is included only with ``HYDRA_FULL_ERROR=1``.
        """
        if is_interrupt(error):
            return cls(explain(error), "interrupted")
        user = is_user_error(error)
        kind: Kind = getattr(error, "kind", "user_error" if user else "bug")
        details = dict(getattr(error, "details", {}))
        if isinstance(error, RankError):
            return cls(explain(error), kind, details, error.trace)
        shown = not user or os.environ.get("HYDRA_FULL_ERROR") == "1"
        stack = "".join(traceback.format_exception(error)) if shown else ""
        return cls(explain(error), kind, details, stack)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """Read the entries that :meth:`record` returned; older versions wrote no kind."""
        names = ("error", "kind", "details", "traceback")
        return cls(**{"kind": "bug"} | {name: record[name] for name in names if name in record})

    def record(self) -> dict[str, Any]:
        """Return the entries of ``result.json``, without the empty ones."""
        return {name: value for name, value in vars(self).items() if value}


class JobError(RuntimeError):
    """A job of a multirun failed; the output of the job has the reason."""


class RankError(RuntimeError):
    """Another rank ended the run.

    Args:
        message: Which rank, and why.
        failure: The failure of that rank, if it could still record one.
        trace: Traceback to show if there is no such record.
    """

    def __init__(self, message: str, failure: Failure | None = None, trace: str = "") -> None:
        super().__init__(message)
        self.failure = failure
        self.kind: Kind = failure.kind if failure else "rank_lost"
        self.details = failure.details if failure else {}
        self.trace = failure.traceback if failure else trace


def is_user_error(error: BaseException) -> bool:
    """Return whether an error is a user's, shown as one message, or a bug, shown with its stack."""
    if isinstance(error, (*_USER_ERRORS, JobError, RankError)):
        return True
    known = (
        getattr(sys.modules.get(module), name, None) for module, name in _USER_ERRORS_ELSEWHERE
    )
    return any(kind is not None and isinstance(error, kind) for kind in known)


def is_interrupt(error: BaseException) -> bool:
    """Return whether a signal or Ctrl-C ended the run, perhaps with another error on the way out.

    Lightning turns Ctrl-C into an exit, and what it interrupts may fail while it ends.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, Interrupted | KeyboardInterrupt):
            return True
        found = found.__context__
    return False


def explain(error: BaseException) -> str:
    """Return the message of an error, without the text that Hydra and OmegaConf add.

    Example:
        >>> explain(ValueError("`ratio` (=0) must be a number of at least 1."))
        '`ratio` (=0) must be a number of at least 1.'
    """
    text = str(error)
    if isinstance(error, Interrupted):
        return error.message
    if is_interrupt(error):
        return "interrupted"
    if isinstance(error, InstantiationException):
        # Hydra: "Error in call to target '...':\n<repr>\nfull_key: <node>"
        node = text.rpartition("full_key: ")[2] if "full_key: " in text else ""
        return f"{node}: {explain(error.__cause__)}" if error.__cause__ else text
    if isinstance(error, HydraException):
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException):
            text += "\n" + str(cause).splitlines()[0]
        # Hydra's advice to add a key with `+` would only lead to the next message.
        text = re.sub(r"\nTo append to your (config|default list) use .*", "", text)
        return text.partition("\nConfig search path")[0].strip()
    if isinstance(error, OmegaConfBaseException):
        said, _, rest = text.partition("\n    full_key: ")
        key = rest.partition("\n")[0]
        return f"{key}: {said}" if key and "<" not in key else said
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if is_user_error(error) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")
