"""A readable console: one line per message, without messages that need no action.

Messages contain names that others chose: of classes, files, folders and options. Control
characters in them are shown as escapes, since a terminal would act on them.
"""

import contextlib
import logging
import re
import sys
import warnings
from typing import Any, TextIO

from se_lightning.ranks import is_further_rank

__all__ = ["Formatter", "Handler", "printable", "quiet", "say"]

# Lightning and its dependencies log these in every run, and no user has to act on them. Compiled
# only when it is used, since commands such as --help do not log.
_NOISE = (
    r"^.{0,4}Tip:"
    r"|TPU available"
    r"|Using (16bit|bfloat16) Automatic Mixed Precision"
    r"|`Trainer\.fit` stopped"
    r"|`Trainer\(.*\)` was configured so"
    r"|Experiment logs directory .* exists and is not empty"
    r"|Checkpoint directory .* exists and is not empty"
    r"|isinstance\(treespec, LeafSpec\)"
    r"|`tensorboardX` has been removed"
    r"|does not have many workers which may be a bottleneck"
    r"|The number of training batches .* is smaller than the logging interval"
    r"|Loading `train_dataloader` to estimate number of stepping batches"
    r"|Restored all states from the checkpoint|Restoring states from the checkpoint"
    r"|Loaded model weights from the checkpoint"
    r"|Starting with v2\.2|All distributed processes registered|distributed_backend="
    r"|Detected KeyboardInterrupt|Received SIGTERM"
    r"|Initializing distributed: GLOBAL_RANK|^-{20,}"
)

# ASCII's, those that break lines or reverse the direction of text, and bytes that are not UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Return a text with its control characters as escapes, except those in ``keep``.

    Example:
        >>> print(printable("\x1b[31mred"))
        \x1b[31mred
    """
    return _CONTROL.sub(lambda m: m[0] if m[0] in keep else repr(m[0])[1:-1], text)


def say(text: str, *, error: bool = False) -> None:
    """Print a message at once, on the standard output or as an error."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


class Handler(logging.StreamHandler):
    """Handler that prints above the progress bars of a terminal.

    While rich draws a bar, it replaces the standard streams; what is written to the original ones
    is overwritten by the bar. tqdm draws its bar in the last line, and must remove it first.

    Args:
        stream: Where to print. If it is a standard stream, then what replaces it is used as well.
    """

    def __init__(self, stream: TextIO) -> None:
        names = ("stdout", "stderr")
        self._standard = next((name for name in names if stream is getattr(sys, name)), None)
        super().__init__(stream)

    @property
    def stream(self) -> Any:  # noqa: D102
        return self._given if self._standard is None else getattr(sys, self._standard)

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._given = stream

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # no bar without its module
        with bars.external_write_mode(self.stream) if bars else contextlib.nullcontext():
            super().emit(record)


class Formatter(logging.Formatter):
    """Formatter that shows the level of warnings and errors only."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        message = printable(super().format(record))
        return message if record.levelno < logging.WARNING else f"{record.levelname}: {message}"


def _is_not_noise(record: logging.LogRecord) -> bool:
    return not re.search(_NOISE, record.getMessage())


def quiet() -> None:
    """Drop the known noise, log warnings as lines, and on ranks above 0 log errors only."""
    logging.raiseExceptions = False  # a closed pipe (| head) must not print a stack trace per line
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(_is_not_noise)
    if is_further_rank():
        root.setLevel(logging.ERROR)
    shown = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = str(message).strip()
        if text not in shown:
            shown.add(text)
            logging.getLogger("py.warnings").warning(text)

    warnings.showwarning = show
