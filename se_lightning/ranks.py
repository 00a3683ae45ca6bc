"""Which process this is: the first of a run, a further rank, or a job of a multirun."""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

__all__ = [
    "CHILD",
    "INHERITED",
    "Interrupted",
    "die_with_parent",
    "external_rank",
    "is_further_rank",
    "is_launched",
    "leave_writing_to_rank_0",
    "rank",
]

CHILD = "SE_LIGHTNING_CHILD"  # set in the environment of a multirun's job
_STARTER = "SE_LIGHTNING_STARTER"  # the process of ours that started this one, or none
# What Lightning and the starters of ranks leave in the environment of a process.
INHERITED = (
    "LOCAL_RANK",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)


class Interrupted(SystemExit):
    """A signal asked the run to end, and it did so in order; the exit code is 128 + its number.

    Args:
        number: the signal's.
        message: how the run ended.
    """

    def __init__(self, number: int, message: str) -> None:
        # A rank of ours that ends in order must not look like one that died.
        super().__init__(0 if is_launched() else 128 + number)
        self.message = f"{signal.Signals(number).name}: {message}"


def external_rank() -> int | None:
    """Return this process's rank if torchrun or srun started it as one of several; else None.

    Then all of them are in the same job already, and a process of its own would belong to none.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"])
    # As Lightning's SLURMEnvironment has it: in an interactive shell there is but one process.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if several and "SLURM_PROCID" in os.environ and not interactive:
        return int(os.environ["SLURM_PROCID"])
    return None


def rank() -> int:
    """Return this process's rank; 0 where there is but one."""
    return external_rank() or int(os.environ.get("LOCAL_RANK", "0"))


def is_further_rank() -> bool:
    """Tell whether this process is not the first one of its run."""
    return rank() > 0


def is_launched() -> bool:
    """Tell whether Lightning has started this process, as a further rank of its parent's run."""
    return is_further_rank() and external_rank() is None


def die_with_parent() -> None:
    """Ask Linux to end this process with the one that started it, if that was ours or torchrun.

    Otherwise a rank whose rank 0 was killed waits for it in a collective, for half an hour.
    """
    starter = os.environ.get(_STARTER)
    os.environ[_STARTER] = str(os.getpid())
    ours = CHILD in os.environ or is_launched() or "TORCHELASTIC_RUN_ID" in os.environ
    if ours and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # It may have been killed before the line above; a worker of joblib's may stand between.
        if starter and int(starter) != os.getppid() and _is_gone(int(starter)):
            os._exit(1)


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # killed, and not yet fetched by its own parent


def leave_writing_to_rank_0(argv: list[str]) -> None:
    """Give the further ranks of torchrun and srun a folder that goes when they end.

    Each rank composes its own time stamp; without this, each would leave a run directory.
    """
    if external_rank():
        folder = tempfile.mkdtemp(prefix="se_lightning-rank-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        argv += [f"hydra.{kind}.dir={folder}" for kind in ("run", "sweep")]
        argv.append("hydra.output_subdir=null")
