"""The restart of a SLURM job that is about to be preempted."""

import logging
import os
import shutil
import subprocess
from pathlib import Path

from se_lightning.atomic import atomic_path
from se_lightning.lightning import IN_COMMAND, Trainer

__all__ = ["requeue"]

log = logging.getLogger(__name__)


def requeue(trainer: Trainer, last: Path) -> None:
    """Requeue this SLURM job, whose restart resumes from the last checkpoint.

    The command line finds its run by itself. For other programs, the checkpoint is copied to where
    Lightning looks for it when a job restarts (``ckpt_path=None`` and ``ckpt_path="hpc"``).
    """
    if not IN_COMMAND:
        connector = trainer._checkpoint_connector
        with atomic_path(Path(connector.hpc_save_path(trainer.default_root_dir))) as temporary:
            shutil.copyfile(last, temporary)
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("`scontrol requeue %s` failed; the job will not restart: %s", job, reason)
    else:
        log.info("SLURM job %s has been requeued.", job)
