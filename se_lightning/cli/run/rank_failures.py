"""When one of several ranks fails: all of them end, and its own words are the last ones.

A rank that Lightning started leaves its failure in the run directory and ends without a word.
Rank 0 loses its connection by that (gloo) or waits for ever (NCCL); it looks for who was first.
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
import traceback
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig

from se_lightning.cli.errors import RankError, explain, is_mistake
from se_lightning.cli.run.result import RESULT, write_failure
from se_lightning.ranks import external_rank, is_launched, rank

__all__ = ["blame", "disconnect", "hurry", "part", "stack", "tell", "vanish", "watch_ranks"]

PATIENCE = 3.0  # seconds from a lost connection to the end of the rank that it was to
GRACE = 10.0  # seconds in which rank 0 may end by itself when another rank has
# ... where that was asked to end, as all were: rank 0 may be saving.
GRACE_SIGTERM = 60.0
YIELD = 5.0  # seconds for torchrun to see the first rank's end, and to end this one, before it does
EXIT_LIMIT = 15  # seconds for what Python does at its end: a process group may wait there for ever
_SIGTERM = (-signal.SIGTERM, 128 + signal.SIGTERM)
_LOST = re.compile(r"gloo|NCCL|TCPStore|Connection (closed|reset|refused)|Broken pipe|[Ss]ocket")
_TORCHRUNS_FILE = "TORCHELASTIC_ERROR_FILE"

_watch: "_Watch | None" = None  # of the ranks that this process has started


def stack(error: BaseException) -> str:
    """Return the traceback that the error wants: a user's mistake has none."""
    if isinstance(error, RankError):
        return error.trace
    if is_mistake(error) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        return ""
    return "".join(traceback.format_exception(error))


def tell(error: BaseException, hint: str = "") -> None:
    """Print the last words of a failed process, and hand them to torchrun for its summary."""
    words = f"{stack(error)}se_lightning: error: {explain(error)}{hint}"
    print(words, file=sys.stderr, flush=True)
    file = os.environ.get(_TORCHRUNS_FILE)
    if file is None:
        return
    message = {"py_callstack": words, "timestamp": str(int(time.time()))}
    ours = {"rank": rank(), "error": explain(error), "traceback": stack(error)}
    content = {"message": {"message": explain(error), "extraInfo": message}, "se_lightning": ours}
    Path(file).write_text(json.dumps(content))
    if isinstance(error, RankError):
        time.sleep(YIELD)


def watch_ranks() -> None:
    """Have the ranks that Lightning starts watched by us: its own watcher kills without a word."""
    from pytorch_lightning.strategies.launchers import subprocess_script

    subprocess_script._launch_process_observer = _start_watch  # type: ignore[assignment]


def _start_watch(processes: list[subprocess.Popen]) -> None:
    global _watch
    _watch = _Watch(processes, Path(HydraConfig.get().runtime.output_dir))
    _watch.start()


def blame(error: BaseException, run_dir: Path) -> BaseException:
    """Return what ended the run: this error, or the failure of another rank that led to it."""
    if _watch is not None:
        _watch.leave_to_main()
    alone = _watch is None and external_rank() is None and not is_launched()
    if alone or not isinstance(error, Exception):
        return error
    lost = not is_mistake(error) and _LOST.search(str(error)) is not None
    other = _other(run_dir, PATIENCE if lost else 0)
    if other is not None:
        return error if other.error == explain(error) else other
    if lost and not is_launched():
        symptom = explain(error).partition(". This is typically")[0]  # gloo's advice
        return RankError(
            "the connection to another rank is lost; what ended that rank stands in its own "
            f"output ({symptom})",
            trace=stack(error),
        )
    return error


def _other(run_dir: Path, patience: float) -> RankError | None:
    """Look for the failure of another rank, for so many seconds."""
    end = time.monotonic() + patience
    while True:
        found = _recorded(run_dir) or (_watch.unrecorded() if _watch else None)
        if found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _recorded(run_dir: Path) -> RankError | None:
    """Read what another rank has left: in the run directory, or with torchrun in its files."""
    records = []
    if _TORCHRUNS_FILE in os.environ:
        for path in Path(os.environ[_TORCHRUNS_FILE]).parent.parent.glob("*/error.json"):
            records.append(_read(path).get("se_lightning", {}))
    else:
        records.append(_read(run_dir / RESULT))
    for record in records:
        first = record.get("rank", 0)
        if "error" in record and first != rank():
            message = f"rank {first}: {record['error']}"
            return RankError(message, record["error"], record.get("traceback", ""))
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or not whole yet
        return {}


def vanish() -> NoReturn:
    """End this process now: what Python does at its end takes seconds that others wait for."""
    for worker in multiprocessing.active_children():  # of a data loader
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(1)


def hurry() -> None:
    """End the ranks that this process has started, and this one soon, whatever waits at its end."""
    if _watch is not None:
        for process in _watch.processes:
            process.kill()
    if _distributed():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel's: no Python runs any more then
        signal.alarm(EXIT_LIMIT)


def part() -> None:
    """Leave the other ranks at the end of a job, and wait for those that this process started.

    Raises:
        RankError: if one of them failed after this one had no more to do with it.
    """
    if external_rank() is None:  # torchrun's and srun's ranks go on to the next job of a multirun
        disconnect()
    if _watch is not None:
        _watch.wait()


def disconnect() -> None:
    """End the process group, as torch wants it before a good end."""
    if _distributed():
        sys.modules["torch.distributed"].destroy_process_group()


def _distributed() -> bool:
    # Not imported for it: most that ends has not even begun.
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


class _Watch(threading.Thread):
    """Ends this process, rank 0, where it does not end by itself after another rank has."""

    def __init__(self, processes: list[subprocess.Popen], run_dir: Path) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.processes = processes
        self.run_dir = run_dir
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
        """Return the exit codes of those that failed; 1 of one that still hangs at its end."""
        codes = [code for process in self.processes if (code := process.poll())]
        return codes or ([1] if _recorded(self.run_dir) else [])

    def _end(self) -> None:
        error = _other(self.run_dir, 0)
        if error is not None:
            write_failure(self.run_dir, error.error, error.trace)
            tell(error)
        for process in self.processes:
            process.kill()
        vanish()  # the main thread waits in a collective that nobody else will enter

    def leave_to_main(self) -> None:
        """Stop watching: the main thread has an error of its own, and tells."""
        with self._last_words:
            self._main_ends.set()

    def unrecorded(self) -> RankError | None:
        """Say how a rank ended that could not say it."""
        codes = {n: code for n, process in enumerate(self.processes, 1) if (code := process.poll())}
        if not codes:
            return None
        first = min(codes, key=lambda n: codes[n])  # signals: those who miss it end with 1
        if codes[first] > 0:
            return RankError(
                f"rank {first} ended with exit code {codes[first]}; what it said stands above"
            )
        name = signal.Signals(-codes[first]).name
        why = ": the kernel does that when memory is out" if name == "SIGKILL" else ""
        return RankError(f"rank {first} was killed by signal {-codes[first]} ({name}){why}")

    def wait(self) -> None:
        """Wait for the ranks, which have nothing left to do."""
        for process in self.processes:
            try:
                process.wait(timeout=EXIT_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()  # no failure: its work is done
                continue
            if process.returncode and (error := _other(self.run_dir, 0)):
                raise error
        self.leave_to_main()
