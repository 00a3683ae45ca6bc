"""Failure of one of several ranks: all ranks end, and the error of that rank is reported last.

A rank that Lightning started records its failure in the run folder and ends silently. Rank 0 then
loses its connection (gloo) or waits forever (NCCL), and looks for the rank that failed first.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig

from se_lightning.cli.console import say
from se_lightning.cli.errors import Failure, RankError, explain, is_user_error
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.result import identity
from se_lightning.ranks import external_rank, is_further_rank, is_launched, rank

__all__ = ["blame", "disconnect", "hurry", "part", "record", "report", "vanish", "watch_ranks"]

PATIENCE = 3.0  # seconds from a lost connection until the failure of the other rank is recorded
GRACE = 10.0  # seconds for rank 0 to end by itself after another rank has failed
GRACE_SIGTERM = 60.0  # ... after all ranks were asked to end: rank 0 may be saving
YIELD = 5.0  # seconds for torchrun to notice the first rank's failure before this rank ends
EXIT_LIMIT = 15  # seconds for Python's exit, in which a process group may wait forever
_SIGTERM = (-signal.SIGTERM, 128 + signal.SIGTERM)
# Gloo raises a plain RuntimeError; only its message shows that a connection is lost.
_LOST = re.compile(r"gloo|NCCL|TCPStore|Connection (closed|reset|refused)|Broken pipe|[Ss]ocket")
_TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"

_watch: "_Watch | None" = None  # of the ranks that this process has started


def record(folder: RunFolder, failure: Failure) -> bool:
    """Write the result of a failed run, unless another rank has already written one.

    Returns:
        Whether the folder has a result now.
    """
    status = "interrupted" if failure.kind == "interrupted" else "failed"
    result: Any = {"status": status, **failure.record(), **identity()}
    if is_further_rank():
        result["rank"] = rank()
    with contextlib.suppress(OSError):  # a full disk must not hide the failure itself
        folder.write_result(result, keep=True)
        return True
    return False


def report(failure: Failure, *, hint: str = "", first_elsewhere: bool = False) -> None:
    """Print the error of a failed process with a hint, and hand it to torchrun for its summary.

    With ``first_elsewhere``, leave torchrun time to notice the rank that failed first.
    """
    text = f"{failure.traceback}se_lightning: error: {failure.error}{hint}"
    say(text, error=True)
    file = os.environ.get(_TORCHRUN_FILE)
    if file is None:
        return
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    entry = {"rank": rank(), **failure.record()}
    content = {"message": {"message": failure.error, "extraInfo": extra}, "se_lightning": entry}
    Path(file).write_text(json.dumps(content))
    if first_elsewhere:
        time.sleep(YIELD)


def watch_ranks() -> None:
    """Watch the ranks that Lightning starts; its watcher would kill this process silently."""
    from pytorch_lightning.strategies.launchers import subprocess_script

    subprocess_script._launch_process_observer = _start_watch  # type: ignore[assignment]


def _start_watch(processes: list[subprocess.Popen]) -> None:
    global _watch
    _watch = _Watch(processes, RunFolder(HydraConfig.get().runtime.output_dir))
    _watch.start()


def blame(error: BaseException, folder: RunFolder) -> BaseException:
    """Return the cause of a failure: this error, or that of another rank."""
    if _watch is not None:
        _watch.leave_to_main()
    alone = _watch is None and external_rank() is None and not is_launched()
    if alone or not isinstance(error, Exception):
        return error
    lost = not is_user_error(error) and _LOST.search(str(error)) is not None
    other = _other(folder, PATIENCE if lost else 0)
    if other is not None:
        same = other.failure is not None and other.failure.error == explain(error)
        return error if same else other
    if lost and not is_launched():
        symptom = explain(error).partition(". This is typically")[0]  # gloo's advice
        return RankError(
            "the connection to another rank is lost; see that rank's own output for the reason "
            f"({symptom})",
            trace=Failure.of(error).traceback,
        )
    return error


def _other(folder: RunFolder, patience: float) -> RankError | None:
    """Look for the failure of another rank, for ``patience`` seconds."""
    end = time.monotonic() + patience
    while True:
        found = _recorded(folder) or (_watch.unrecorded() if _watch else None)
        if found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _recorded(folder: RunFolder) -> RankError | None:
    """Read the failure of another rank from the run folder, or from torchrun's files."""
    records: list[Any] = []
    if _TORCHRUN_FILE in os.environ:
        for path in Path(os.environ[_TORCHRUN_FILE]).parent.parent.glob("*/error.json"):
            records.append(_read(path).get("se_lightning", {}))
    else:
        records.append(folder.result())
    for entry in records:
        first = entry.get("rank", 0)
        if "error" in entry and first != rank():
            return RankError(f"rank {first}: {entry['error']}", Failure.read(entry))
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or still being written
        return {}


def vanish() -> NoReturn:
    """End this process now; Python's normal exit takes seconds while other ranks wait."""
    for worker in multiprocessing.active_children():  # of a data loader
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            stream.flush()
    os._exit(1)


def hurry() -> None:
    """End the ranks that this process started, and limit how long its exit may take."""
    if _watch is not None:
        for process in _watch.processes:
            process.kill()
    if _distributed():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a Python handler would not run by then
        signal.alarm(EXIT_LIMIT)


def part() -> None:
    """Leave the other ranks at the end of a job, and wait for those that this process started.

    Raises:
        RankError: If one of them fails after its last exchange with this one.
    """
    if external_rank() is None:  # torchrun's and srun's ranks continue with a multirun's next job
        disconnect()
    if _watch is not None:
        _watch.wait()


def disconnect() -> None:
    """Destroy the process group, as torch expects before a normal exit."""
    if _distributed():
        sys.modules["torch.distributed"].destroy_process_group()


def _distributed() -> bool:
    # Not imported here, since most commands that fail have not loaded torch.
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


class _Watch(threading.Thread):
    """Thread that ends rank 0 if it does not end by itself after another rank has failed."""

    def __init__(self, processes: list[subprocess.Popen], folder: RunFolder) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.processes = processes
        self.folder = folder
        self._main_ends = threading.Event()
        self._last_words = threading.Lock()

    def run(self) -> None:
        while not (failed := self._failed()):
            if self._main_ends.wait(1):
                return
        asked = all(code in _SIGTERM for code in failed)
        if self._main_ends.wait(GRACE_SIGTERM if asked else GRACE):
            return
        with self._last_words:
            if not self._main_ends.is_set():
                self._end()

    def _failed(self) -> list[int]:
        """Return the exit codes of the ranks that failed; 1 for one that hangs in its exit."""
        codes = [code for process in self.processes if (code := process.poll())]
        return codes or ([1] if _recorded(self.folder) else [])

    def _end(self) -> None:
        error = _other(self.folder, 0)
        if error is not None:
            record(self.folder, Failure.of(error))
            report(Failure.of(error), first_elsewhere=True)
        for process in self.processes:
            process.kill()
        vanish()  # the main thread waits in a collective that no other rank will enter

    def leave_to_main(self) -> None:
        """Stop watching: the main thread has an error and reports it."""
        with self._last_words:
            self._main_ends.set()

    def unrecorded(self) -> RankError | None:
        """Return the failure of a rank that ended without recording one."""
        codes = {n: code for n, process in enumerate(self.processes, 1) if (code := process.poll())}
        if not codes:
            return None
        first = min(codes, key=lambda n: codes[n])  # a signal (negative) is the cause
        if codes[first] > 0:
            return RankError(
                f"rank {first} ended with exit code {codes[first]}; see its output above"
            )
        name = signal.Signals(-codes[first]).name
        why = " (probably the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
        return RankError(f"rank {first} was killed by signal {-codes[first]}, {name}{why}")

    def wait(self) -> None:
        """Wait for the ranks, which have nothing left to do."""
        for process in self.processes:
            try:
                process.wait(timeout=EXIT_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()  # not a failure: its work is done
                continue
            if process.returncode and (error := _other(self.folder, 0)):
                raise error
        self.leave_to_main()
