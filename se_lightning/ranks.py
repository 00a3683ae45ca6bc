"""The role of this process: first rank of a run, further rank, or job of a multirun."""

import os
import signal

__all__ = [
    "CHILD",
    "INHERITED",
    "Interrupted",
    "external_rank",
    "is_further_rank",
    "is_launched",
    "rank",
]

CHILD = "SE_LIGHTNING_CHILD"  # set in the environment of each job of a multirun
# Variables that Lightning and the launchers of ranks set, and that a new run must not inherit.
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
    """A run that a signal has stopped gracefully; the exit code is 128 + the signal's number.

    Args:
        number: Number of the signal.
        message: How the run ended.
    """

    def __init__(self, number: int, message: str) -> None:
        # 0 for a rank that Lightning started, which must not look as if it had crashed.
        super().__init__(0 if is_launched() else 128 + number)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.message = f"{name}: {message}"


def external_rank() -> int | None:
    """Return the rank of this process if torchrun or srun started several; else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"])
    # An interactive shell has one process, as in Lightning's SLURMEnvironment.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if several and "SLURM_PROCID" in os.environ and not interactive:
        return int(os.environ["SLURM_PROCID"])
    return None


def rank() -> int:
    """Return the rank of this process; 0 if there is only one."""
    return external_rank() or int(os.environ.get("LOCAL_RANK", "0"))


def is_further_rank() -> bool:
    """Return whether this process is a rank other than 0."""
    return rank() > 0


def is_launched() -> bool:
    """Return whether Lightning started this process as a further rank."""
    return is_further_rank() and external_rank() is None
