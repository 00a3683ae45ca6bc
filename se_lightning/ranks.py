"""Which process this is: the first of a run, a further rank, or a job of a multirun."""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile

__all__ = [
    "CHILD",
    "INHERITED",
    "die_with_parent",
    "external_rank",
    "is_further_rank",
    "leave_writing_to_rank_0",
]

CHILD = "SE_LIGHTNING_CHILD"  # set in the environment of a multirun's job
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


def is_further_rank() -> bool:
    """Tell whether this process is not the first one of its run."""
    return (external_rank() or int(os.environ.get("LOCAL_RANK", "0"))) > 0


def die_with_parent() -> None:
    """Ask Linux to end this process with the one that started it, if that was one of ours.

    Otherwise a rank whose rank 0 was killed waits for it in a collective, for half an hour.
    """
    ours = CHILD in os.environ or (is_further_rank() and external_rank() is None)
    if ours and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def leave_writing_to_rank_0(argv: list[str]) -> None:
    """Give the further ranks of torchrun and srun a folder that goes when they end.

    Each rank composes its own time stamp; without this, each would leave a run directory.
    """
    if external_rank():
        folder = tempfile.mkdtemp(prefix="se_lightning-rank-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        argv += [f"hydra.{kind}.dir={folder}" for kind in ("run", "sweep")]
        argv.append("hydra.output_subdir=null")
