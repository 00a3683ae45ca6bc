"""Ctrl-C and SIGTERM in a run: where it is, and how to go on."""

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from se_lightning.cli.errors import is_interrupt
from se_lightning.cli.run.folder import RunFolder
from se_lightning.ranks import CHILD, Interrupted, external_rank, is_further_rank

__all__ = ["ended_by_signals"]


@contextlib.contextmanager
def ended_by_signals(folder: RunFolder) -> Iterator[None]:
    """End the block on Ctrl-C or SIGTERM with a message about the run.

    While a model is trained, :class:`se_lightning.LastCheckpoint` saves on SIGTERM instead. Ranks
    of torchrun and srun keep the default, which ends them at once: a Python handler would have to
    wait until torch has connected all ranks, which it never does after one of them has failed.

    Raises:
        Interrupted: On a signal.
    """

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number, _message(folder))

    main = threading.current_thread() is threading.main_thread()
    several = is_further_rank() or external_rank() is not None
    free = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and not several
    if free:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException as error:
        if is_interrupt(error) and not isinstance(error, Interrupted):
            raise Interrupted(signal.SIGINT, _message(folder)) from None
        raise
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _message(folder: RunFolder) -> str:
    if CHILD in os.environ:
        return f"the job in {folder.path} was stopped"  # the multirun says how to go on
    where = f"the run in {folder.path} was stopped"
    if not folder.last_checkpoint.exists():
        return f"{where}; it has saved no last.ckpt, so repeat the command to start it again"
    command = f"python -m se_lightning resume={shlex.quote(str(folder.path))}"
    return f"{where}; to continue after its last save: {command}"
