"""The processes of a multirun: side by side on devices of their own, and none is left behind.

Each job leads a process group, so that a signal reaches its ranks and workers, or the job alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from se_lightning.cli.run.result import RESULT, write_result

__all__ = ["CONSOLE", "Job", "Pool", "Stopped", "gpus_asked", "read_result", "visible_gpus"]

CONSOLE = "console.txt"  # what a job says, where several would speak at once
PATIENCE = 30.0  # seconds that a job has for its last checkpoint
_GLANCE = 0.1  # seconds between two looks at the processes


class Stopped(BaseException):
    """The pool has ended its jobs, and starts none; no Exception, which Hydra would keep."""


@dataclass(frozen=True, eq=False)
class Job:
    """One job of a multirun: a command, and where it runs."""

    number: int
    run_dir: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    gpus: int = 0
    cwd: Path | None = None


class Pool:
    """Runs jobs, some at a time, each on devices that no other has.

    Args:
        parallel: how many run at a time. Of one alone nothing is kept back.
        gpus: ids of the GPUs to share out; without any, the cores are.
        fail_fast: the first failure ends the jobs that run, and none is started any more.

    Raises:
        ValueError: if there are fewer cores than jobs.
    """

    def __init__(
        self, parallel: int = 1, *, gpus: Sequence[str] = (), fail_fast: bool = False
    ) -> None:
        cores = _cores()
        if parallel > 1 and not gpus and 0 < len(cores) < parallel:
            raise ValueError(
                f"`jobs.parallel` (={parallel}) is more than the {len(cores)} cores that there are "
                "to share out; lower it."
            )
        self.parallel = parallel
        self.fail_fast = fail_fast
        self.results: dict[int, dict[str, Any]] = {}  # of the jobs that have ended, by number
        self._on_gpus = bool(gpus)
        self._free: list[Any] = [] if parallel == 1 else [*(gpus or cores)]
        self._cores_each = len(self._free) // parallel
        self._running: dict[Job, tuple[subprocess.Popen, list[Any]]] = {}
        self._stopping = False

    def start(self, job: Job) -> None:
        """Start a job as soon as there is room for it.

        Raises:
            Stopped: if a failure ends the multirun meanwhile.
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
                job.run_dir.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context((job.run_dir / CONSOLE).open("ab"))
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
        """Wait until no more than so many jobs run.

        Raises:
            Stopped: if a failure ends the multirun.
        """
        while True:
            self._look(pause=len(self._running) > running)
            if len(self._running) <= running:
                return

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End all jobs: by the signal, and by SIGKILL those that still run after `PATIENCE`."""
        self._stopping = True
        for process, _ in self._running.values():
            # Ctrl-C is for all of a group, as a terminal has it; a job passes SIGTERM on itself.
            tell = os.killpg if signum == signal.SIGINT else os.kill
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                tell(process.pid, signum)
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
        """See which jobs have ended."""
        for job, (process, _) in list(self._running.items()):
            # WNOWAIT: while it is not yet fetched, no other process can have its number.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(process.pid)
            failed = self._end(job, process.wait())
            if failed and self.fail_fast and not self._stopping:
                self.stop()
                raise Stopped
            pause = False
        if pause:
            time.sleep(_GLANCE)

    def _end(self, job: Job, code: int) -> bool:
        """Give a job's devices back, see to it that there is a result, and tell if it failed."""
        _, taken = self._running.pop(job)
        self._free += taken
        result = read_result(job.run_dir)
        if result.get("status") != "completed":
            # The job's own word stands, if it had the time for one.
            words = {
                "error": f"the process ended with exit code {code}",
                "overrides": job.overrides,
            }
            result = {"status": "failed"} | words | result | {"job": job.number}
            if self._stopping:
                result["status"] = "interrupted"
            with contextlib.suppress(OSError):  # a full disk must not hide the failure
                write_result(job.run_dir, result)
        self.results[job.number] = result
        self._say(job, result["status"])
        return result["status"] != "completed"

    def _say(self, job: Job, what: str) -> None:
        if self.parallel > 1:
            print(f"job {job.number}: {what}", flush=True)


def read_result(run_dir: Path) -> dict[str, Any]:
    """Read what a run has left; nothing of one that has not ended."""
    try:
        return json.loads((run_dir / RESULT).read_text())
    except (OSError, ValueError):
        return {}


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def gpus_asked(trainer: Any, gpus: Sequence[str]) -> int:
    """Return how many of the GPUs a job wants, by its trainer's accelerator and devices.

    Raises:
        ValueError: if it wants more than there are, or names them.
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
            f"`trainer.devices` (={devices}) must be a number of GPUs where jobs.parallel shares "
            "them out."
        ) from None
    if count > len(gpus):
        raise ValueError(
            f"trainer.devices={count} on GPUs, but there are {len(gpus)} to share out. Lower "
            "trainer.devices, or set trainer.accelerator=cpu."
        )
    return count


def _cores() -> list[int]:
    """Return the cores that this process may use; none where Python cannot hand them out."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of zombies only
        os.killpg(leader, signal.SIGKILL)


def _devices(taken: list[Any], on_gpus: bool) -> str:
    return f"{'GPU' if on_gpus else 'core'} {','.join(map(str, taken))}"
