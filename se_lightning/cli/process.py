"""Ending this process with its parent, and replacing it with another command."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from se_lightning.cli.command import Command
from se_lightning.ranks import CHILD, INHERITED, is_launched

__all__ = ["die_with_multirun", "die_with_parent", "replace_process"]

_STARTER = "SE_LIGHTNING_STARTER"  # the process of this package that started this one
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_POLL = 0.5  # seconds between two checks of the multirun


def die_with_parent() -> None:
    """Ask Linux to end this process with its parent, if that is a run of this package or torchrun.

    Otherwise a rank whose rank 0 was killed waits in a collective, for up to half an hour.
    """
    starter = _become_starter()
    started = CHILD in os.environ or is_launched() or "TORCHELASTIC_RUN_ID" in os.environ
    if started and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The starter may have been killed before prctl.
        if starter and starter != os.getppid() and _is_gone(starter):
            os._exit(1)


def die_with_multirun() -> None:
    """End this process and its jobs with the multirun, if this is a worker of a launcher.

    The parent of a worker need not be the multirun, and a worker's jobs die with the worker only,
    which can outlive the multirun (joblib's does so for minutes).
    """
    starter = _become_starter()
    if starter and starter != os.getpid() and sys.platform == "linux":
        threading.Thread(target=_die_with, args=(starter,), daemon=True).start()


def _die_with(process: int) -> None:
    while not _is_gone(process):
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGKILL)


def _become_starter() -> int | None:
    """Record this process as the starter of its children, and return the one that started it.

    None if there is none, or it is on another machine or outside of this SLURM job.
    """
    here = f"{socket.gethostname()} {os.environ.get('SLURM_JOB_ID', '')}"
    pid, _, place = os.environ.get(_STARTER, "").partition(" ")
    os.environ[_STARTER] = f"{os.getpid()} {here}"
    return int(pid) if pid and place == here else None


def replace_process(command: Command) -> NoReturn:
    """Replace this process with another command, which reliably frees the memory of the GPU."""
    if hasattr(signal, "alarm"):
        signal.alarm(0)  # a pending alarm would survive the replacement
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in Path("/proc/self/fd").glob("[0-9]*"):
        number = int(descriptor.name)
        if number > 2:  # e.g. that of a GPU, whose memory is freed when the last one closes
            with contextlib.suppress(OSError):  # closed since it was listed
                os.set_inheritable(number, False)
    environment = {name: value for name, value in os.environ.items() if name not in INHERITED}
    os.execve(sys.executable, command.line(), environment)


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # killed, but not yet waited for by its parent
