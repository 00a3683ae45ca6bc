"""The processes of a multirun: several at a time, each with its own devices.

Each job leads a process group, so that a signal can reach its ranks and workers, or the job alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from se_lightning.cli.console import say
from se_lightning.cli.errors import Failure, Kind
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.result import RunResult

__all__ = ["Job", "Pool", "Stopped", "gpus_needed", "visible_gpus"]

PATIENCE = 30.0  # seconds for a job to save its last checkpoint
_POLL = 0.1  # seconds between two checks of the processes


class Stopped(BaseException):
    """The pool has ended its jobs and starts no more; not an Exception, which Hydra would catch."""


@dataclass(frozen=True, eq=False)
class Job:
    """One job of a multirun: a command, and where it runs."""

    number: int
    folder: RunFolder
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    gpus: int = 0
    cwd: Path | None = None


class Pool:
    """Runs several jobs at a time, each on GPUs or cores that no other job uses.

    Args:
        parallel: Number of jobs at a time. A single job gets all devices.
        gpus: Ids of the GPUs to divide between the jobs; without any, the cores are divided.
        fail_fast: End the other jobs at the first failure, and start no more.

    Raises:
        ValueError: If there are fewer cores than jobs.
    """

    def __init__(
        self, parallel: int = 1, *, gpus: Sequence[str] = (), fail_fast: bool = False
    ) -> None:
        cores = _cores()
        if parallel > 1 and not gpus and 0 < len(cores) < parallel:
            raise ValueError(
                f"`jobs.parallel` (={parallel}) is more than the {len(cores)} available cores; "
                "lower it."
            )
        self.parallel = parallel
        self.fail_fast = fail_fast
        self.results: dict[int, RunResult] = {}  # of the jobs that have ended, by number
        self._on_gpus = bool(gpus)
        self._free: list[Any] = [] if parallel == 1 else [*(gpus or cores)]
        self._cores_each = len(self._free) // parallel
        self._running: dict[Job, tuple[subprocess.Popen, list[Any]]] = {}
        self._stopping = False

    def start(self, job: Job) -> None:
        """Start a job as soon as its devices are free.

        Raises:
            Stopped: If a failure ends the multirun in the meantime.
        """
        self.wait(self.parallel - 1)
        share = self._share(job)
        while len(self._free) < share:
            self._look()
        taken, self._free = self._free[:share], self._free[share:]
        environment = dict(job.environment)
        if self._on_gpus and self.parallel > 1:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        with contextlib.ExitStack() as stack:
            output = None
            if self.parallel > 1:
                job.folder.path.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(job.folder.console.open("ab"))
            process = subprocess.Popen(
                job.command,
                env=environment,
                cwd=job.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                process_group=0,
            )
        self._running[job] = process, taken
        if taken and not self._on_gpus:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process.pid, taken)
        self._say(job, "started" + (f" on {_devices(taken, self._on_gpus)}" if taken else ""))

    def wait(self, running: int = 0) -> None:
        """Wait until at most this many jobs run, or raise Stopped if a failure ends them."""
        while True:
            self._look(pause=len(self._running) > running)
            if len(self._running) <= running:
                return

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End all jobs with the signal, and after ``PATIENCE`` with SIGKILL."""
        self._stopping = True
        for process, _ in self._running.values():
            # A terminal sends Ctrl-C to the whole group; a job passes SIGTERM on to its ranks.
            send = os.killpg if signum == signal.SIGINT else os.kill
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                send(process.pid, signum)
        deadline = time.monotonic() + PATIENCE
        try:
            while self._running and time.monotonic() < deadline:
                self._look()
        finally:
            for job, (process, _) in list(self._running.items()):
                _kill_group(process.pid)
                self._end(job, process.wait())

    def _share(self, job: Job) -> int:
        return job.gpus if self._on_gpus and self.parallel > 1 else self._cores_each

    def _look(self, *, pause: bool = True) -> None:
        """Check which jobs have ended."""
        for job, (process, _) in list(self._running.items()):
            # WNOWAIT keeps the process id reserved until its group has been killed.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(process.pid)
            failed = self._end(job, process.wait())
            if failed and self.fail_fast and not self._stopping:
                self.stop()
                raise Stopped
            pause = False
        if pause:
            time.sleep(_POLL)

    def _end(self, job: Job, code: int) -> bool:
        """Free a job's devices, make sure that it has a result, and return whether it failed."""
        _, taken = self._running.pop(job)
        self._free += taken
        result = job.folder.result()
        if result.get("status") != "completed":
            # The job's own record is kept, if it had the time to write one.
            kind: Kind = "interrupted" if self._stopping else "rank_lost"
            unrecorded = Failure(f"the process ended with exit code {code}", kind)
            default = {"status": "failed", **unrecorded.record(), "overrides": job.overrides}
            result = cast(RunResult, default | result | {"job": job.number})
            if self._stopping:
                result["status"] = "interrupted"
            with contextlib.suppress(OSError):  # a full disk must not hide the failure
                job.folder.write_result(result)
        self.results[job.number] = result
        self._say(job, result["status"])
        return result["status"] != "completed"

    def _say(self, job: Job, what: str) -> None:
        if self.parallel > 1:
            say(f"job {job.number}: {what}")


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def gpus_needed(trainer: Any, gpus: Sequence[str]) -> int:
    """Return how many GPUs a job needs, from its trainer's accelerator and devices.

    Raises:
        ValueError: If it needs more than there are, or lists GPUs by their ids.
    """
    accelerator, devices = (OmegaConf.select(trainer, key) for key in ("accelerator", "devices"))
    if not gpus or accelerator not in ("auto", "gpu", "cuda"):
        return 0
    if devices in ("auto", -1, "-1"):
        return len(gpus)
    try:
        count = int(devices)
    except (TypeError, ValueError):
        raise ValueError(
            f"`trainer.devices` (={devices}) must be a number of GPUs if jobs.parallel divides "
            "them between jobs."
        ) from None
    if count > len(gpus):
        raise ValueError(
            f"trainer.devices={count} on GPUs, but this machine has {len(gpus)}. Lower "
            "trainer.devices, or set trainer.accelerator=cpu."
        )
    return count


def _cores() -> list[int]:
    """Return the cores that this process may use; none on systems without affinity."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of zombies only
        os.killpg(leader, signal.SIGKILL)


def _devices(taken: list[Any], on_gpus: bool) -> str:
    return f"{'GPU' if on_gpus else 'core'} {','.join(map(str, taken))}"
