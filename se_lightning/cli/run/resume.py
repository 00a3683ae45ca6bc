"""Resuming a run: the same command again, in the same folder."""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from se_lightning.cli.command import ONE_RUN, Command, key_of, quoted
from se_lightning.cli.run.folder import RESULT, RunFolder
from se_lightning.ranks import CHILD, is_launched

__all__ = ["epochs_done", "resumed"]

# Changing one of these would make it another run.
_FIXED = (
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
    "seed",
    "task",
    "experiment",
    "debug",
    "train",
    "test",
    "ckpt_path",
    "callbacks",
    "compile",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
)
_FREE = ("data.root", "data.num_workers", "data.eval_batch_size", "data.on_error")


def resumed(command: Command) -> Command:
    """Expand ``resume=RUN_DIR`` to the command of that run; return other commands unchanged.

    A job that SLURM has restarted (``scontrol requeue``, a failed node) resumes by itself.

    Raises:
        ValueError: If there is no run to resume in RUN_DIR, or the command would change that run.
    """
    if is_launched():
        return command  # rank 0 has resumed already
    value = command.value("resume")
    if value not in (None, "", "null"):
        return _command(RunFolder(Path(value).resolve()), command.without("resume"))
    return _slurm(command)


def _command(folder: RunFolder, changes: Command) -> Command:
    """Return the command that started the run, with the permitted changes added."""
    from se_lightning.cli.trust import carried_trust  # only resuming needs it

    hydra, status = _recorded(folder)
    _refuse_changes(changes)
    if status == "completed" and not changes.task_overrides:
        raise ValueError(f"{folder.path} is complete; trainer.max_epochs=N extends it.")
    run = Command.recorded(hydra).of_run().without("trust")
    trust = carried_trust(run, changes)
    if "num" in hydra.job:  # set only in a multirun
        run = run.with_(f"hydra.job.num={hydra.job.num}")
    if Path(str(hydra.runtime.get("cwd"))).is_dir():
        os.chdir(hydra.runtime.cwd)  # for relative paths in the overrides
    return run.with_(
        *changes.without("trust").overrides,
        trust,
        f"resume={quoted(folder.path)}",
        f"hydra.run.dir={quoted(folder.path)}",
        ONE_RUN,
        "hydra.output_subdir=null",  # .hydra keeps the original config
    )


def _recorded(folder: RunFolder) -> tuple[DictConfig, str | None]:
    """Return Hydra's node of the run, and the status that the run ended with."""
    path = folder.path
    if not path.is_dir():
        raise ValueError(f"`resume` (={path}) is not a folder; runs are in outputs/.")
    if folder.is_multirun:
        raise ValueError(f"{path} is a multirun: continue it with `-m jobs.resume={path}`.")
    try:
        hydra = folder.hydra()
        Command.recorded(hydra)
        status = folder.result(strict=True).get("status")
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not the folder of a run: {error.filename} is missing."
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} can't be resumed: its .hydra/ or {RESULT} is damaged.") from error
    return hydra, status


def _refuse_changes(changes: Command) -> None:
    own = changes.given("output_dir", "hydra.run.dir", "hydra.output_subdir", "hydra.mode")
    for argument in (*changes.flags, *own):
        raise ValueError(f"`resume` takes the command from the run; leave out {argument}.")
    for override in changes.given(*_FIXED):
        if key_of(override) not in _FREE:
            raise ValueError(
                f"`resume` continues the run with its own settings; leave out {override}. To start "
                "a new run from trained weights, pass model.weights=CHECKPOINT."
            )


def epochs_done(folder: RunFolder, checkpoints: Path) -> int:
    """Return the number of complete epochs of a run without a last.ckpt.

    It is 0 if the run was killed in its first epoch, which can start again without a loss.
    """
    done = folder.epochs_logged()
    saved = sorted(checkpoints.glob("*.ckpt"))
    if saved and not done:
        from se_lightning.models.weights.safe_files import read_file  # torch

        for path in saved:
            with contextlib.suppress(ValueError):  # damaged, or another program's
                content = read_file(path)
                epoch = content.get("epoch") if isinstance(content, dict) else None
                done = max(done, epoch if isinstance(epoch, int) else 0)
    return done


def _slurm(command: Command) -> Command:
    """Name the folder of a batch job after the job and the command, and resume the run in it.

    A restarted job finds its run this way. A repeated command in one job gets a timestamp instead,
    as outside of SLURM.
    """
    if (
        "SLURM_JOB_ID" not in os.environ
        or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        or CHILD in os.environ
        or command.flags
        or command.given("output_dir", "hydra.run.dir", "hydra.mode")
    ):
        return command
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    digest = hashlib.sha256("\0".join(command.argv()).encode()).hexdigest()[:8]
    folder = RunFolder(Path("outputs", f"slurm-{job}-{digest}").absolute())
    if not folder.is_composed:
        return command.with_(f"hydra.run.dir={quoted(folder.path)}")
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return command
    if folder.result().get("status") == "completed":
        print(f"{folder.path} is complete.")
        sys.exit(0)
    return _command(folder, Command())
