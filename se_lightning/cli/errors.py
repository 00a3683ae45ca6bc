"""One clear message for a user's mistake."""

import re

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from se_lightning.ranks import Interrupted

__all__ = ["JobError", "RankError", "explain", "is_mistake"]


# Mistakes that others tell: Lightning's of a set-up, PyYAML's of a config file.
_OTHERS = ("MisconfigurationException", "YAMLError")


class JobError(RuntimeError):
    """A job of a multirun ended badly; its own output has said why."""


class RankError(RuntimeError):
    """Another rank ended the run.

    Args:
        message: which rank, and why.
        error: that rank's own words, as far as it could say them.
        trace: its traceback, where it was no user's mistake.
    """

    def __init__(self, message: str, error: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.error = error or message
        self.trace = trace


def is_mistake(error: BaseException) -> bool:
    """Tell a user's mistake, which wants one message, from a fault, which wants its stack."""
    kinds = (HydraException, OmegaConfBaseException, ValueError, OSError, JobError, RankError)
    # By name: this module must not wait for Lightning to be imported.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, kinds) or not names.isdisjoint(_OTHERS)


def explain(error: BaseException) -> str:
    """Say what is wrong, without the words of the libraries that it came through.

    Example:
        >>> explain(ValueError("`ratio` (=0) must be a number of at least 1."))
        '`ratio` (=0) must be a number of at least 1.'
    """
    text = str(error)
    if isinstance(error, Interrupted):
        return error.message
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return "interrupted"  # Lightning turns it into an exit
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
    if is_mistake(error) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")
