"""Running a multirun: each job in a separate process, and a table of the results.

Lightning starts the further ranks of a job by running ``sys.argv`` again; inside a multirun that
would repeat the whole multirun on each rank. The state that a job leaves in its process (ranks,
process group, W&B run) would also affect the next one. So each job is a separate command.
"""

import contextlib
import importlib.util
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from se_lightning.cli.command import Command
from se_lightning.cli.console import say
from se_lightning.cli.errors import JobError
from se_lightning.cli.process import die_with_multirun
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.sweep import resume
from se_lightning.cli.sweep.multirun import Multirun
from se_lightning.cli.sweep.pool import Job, Pool, Stopped, gpus_needed, visible_gpus
from se_lightning.cli.sweep.summary import SUMMARY, read_results, write_summary
from se_lightning.ranks import CHILD, INHERITED, Interrupted, external_rank

__all__ = ["Sweep", "environment", "lead", "refuse_missing_launchers", "run_job"]

# Variables of an outer W&B run, to which jobs must not log.
_WANDB_RUN = ("WANDB_RUN_ID", "WANDB_RESUME")
_EXTRAS = ("joblib", "submitit")  # Hydra launchers that are installed separately


class Sweep:
    """A multirun that this process leads: its folder, its pool and its GPUs.

    Args:
        multirun: The composed multirun.

    Raises:
        ValueError: If an option of ``jobs`` is invalid, or a job needs more GPUs than there are.
    """

    def __init__(self, multirun: Multirun) -> None:
        jobs = multirun.config.jobs
        _check(multirun)
        self.multirun = multirun
        self.searches = jobs.trials is not None
        gpus = visible_gpus() if jobs.parallel > 1 else []
        points = [multirun.config] if self.searches else multirun.points()
        # For all jobs, so that an impossible one is reported before the first starts.
        needed = [gpus_needed(point.trainer, gpus) for point in points] if gpus else []
        self.gpus = gpus if any(needed) else []
        self.pool = Pool(jobs.parallel, gpus=self.gpus, fail_fast=jobs.fail_fast)
        self.shown = Path(multirun.config.hydra.sweep.dir)
        self.dir = self.shown.absolute()
        self.remark = ""  # printed below the table

    def start(self, job: Job) -> None:
        """Start the remaining part of a job, and wait until another job can start."""
        left = resume.remaining(job)
        if left is not None:
            self.pool.start(left)
            self.pool.wait(self.pool.parallel - 1)

    def report(self) -> None:
        """Write and print the table, and how to run the remaining jobs."""
        results = read_results(self.dir)
        if not results:
            return
        write_summary(self.dir)
        say(f"\n{(self.dir / SUMMARY).read_text()}\n{self.shown}/{SUMMARY}")
        if self.remark:
            say(self.remark)
        if any(result.get("status") != "completed" for result in results):
            folder = shlex.quote(str(self.shown))
            say(f"To continue: python -m se_lightning -m jobs.resume={folder}")

    def raise_failures(self) -> None:
        """Raise a JobError that lists the jobs that did not complete, if there are any."""
        results = {result["job"]: result for result in read_results(self.dir)} | self.pool.results
        by_status: dict[str, list[str]] = {}
        for number, result in sorted(results.items()):
            first = (result.get("error", "").splitlines() or [""])[0]
            by_status.setdefault(result.get("status", "failed"), []).append(f"{number} ({first})")
        by_status.pop("completed", None)
        if not by_status:
            return
        parts = [
            f"{len(jobs)} of {len(results)} jobs {status}: {', '.join(jobs)}"
            for status, jobs in by_status.items()
        ]
        output = RunFolder(self.shown / "JOB").console
        raise JobError(
            "; ".join(parts)
            + "; no further jobs were started (jobs.fail_fast)" * self.pool.fail_fast
            + f"\nOutput of each job: {output}" * (self.pool.parallel > 1)
            + f"\nAll jobs: {self.shown}/{SUMMARY}"
        )


_sweep: Sweep | None = None  # that this process leads


@contextlib.contextmanager
def lead(multirun: Multirun | None, *, resumed: bool = False) -> Iterator[Sweep | None]:
    """Lead a multirun: its jobs end with the block, and its table is written.

    Args:
        multirun: The composed multirun; None for a single run.
        resumed: Whether its folder may hold jobs already.

    Raises:
        JobError: If a job failed.
    """
    global _sweep
    if multirun is None:
        yield None
        return
    sweep = Sweep(multirun)
    if not resumed:
        resume.refuse_used(sweep.dir)
    RunFolder(sweep.dir).claim("hydra.sweep.dir")
    resume.discard_damaged(sweep.dir)
    _sweep = sweep
    try:
        with _ends_by_signal(sweep.pool):
            yield sweep
            sweep.pool.wait()
    except (Stopped, JobError):
        pass  # reported below, with all others
    finally:
        _sweep = None
        sweep.report()
    sweep.raise_failures()


def run_job(cfg: DictConfig) -> float | None:
    """Run Hydra's current job in a separate process.

    If Hydra itself runs one job after another, this returns as soon as the next one can start;
    other launchers and sweepers wait for the result.

    Returns:
        The score that the job reports to a sweeper.

    Raises:
        JobError: If the job was waited for and failed.
    """
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.runtime.cwd, hydra.sweep.dir)
    if _sweep is not None and _sweep.multirun.is_basic:
        _sweep.start(_job(cfg, _sweep.gpus))
        write_summary(sweep_dir)
        return None
    die_with_multirun()
    pool, job = Pool(), _job(cfg)
    left = resume.remaining(job)
    if left is not None:
        with _ends_by_signal(pool):
            pool.start(left)
            pool.wait()
    write_summary(sweep_dir)
    result = pool.results.get(job.number) or job.folder.result()
    if result.get("status") != "completed":
        raise JobError(f"job {job.number} failed: {result.get('error', '')}")
    return result.get("score")


def _job(cfg: DictConfig, gpus: Sequence[str] = ()) -> Job:
    """Return Hydra's current job."""
    hydra = HydraConfig.get()
    folder = RunFolder(hydra.runtime.output_dir)
    command = Command.recorded(hydra).for_job(folder.path, hydra.job.num)
    return Job(
        hydra.job.num,
        folder,
        command.with_("hydra.output_subdir=null").line(),  # .hydra is there already
        environment(Path(hydra.sweep.dir), hydra.job.override_dirname),
        command.task_overrides,
        gpus_needed(cfg.trainer, gpus) if gpus else 0,
        Path(hydra.runtime.cwd),
    )


def environment(sweep_dir: Path, name: str) -> dict[str, str]:
    """Return the environment of a job, without the ranks and the W&B run of this process."""
    kept = {k: v for k, v in os.environ.items() if k not in (*INHERITED, *_WANDB_RUN)}
    kept.setdefault("WANDB_RUN_GROUP", sweep_dir.name)
    kept.setdefault("WANDB_NAME", name or "defaults")
    return kept | {CHILD: "1"}


def _check(multirun: Multirun) -> None:
    """Refuse options of ``jobs`` that are invalid or would be ignored."""
    jobs = multirun.config.jobs
    trials = 1 if jobs.trials is None else jobs.trials
    for name, value in (("parallel", jobs.parallel), ("trials", trials)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`jobs.{name}` (={value}) must be a whole number of at least 1.")
    if not isinstance(jobs.fail_fast, bool):
        raise ValueError(f"`jobs.fail_fast` (={jobs.fail_fast}) must be true or false.")
    defaults = {"parallel": 1, "fail_fast": False, "trials": None}
    given = [name for name, default in defaults.items() if jobs[name] != default]
    if given and external_rank() is not None:
        raise ValueError(f"jobs.{given[0]} starts its own processes: run it without torchrun.")
    if given and not multirun.is_basic:
        raise ValueError(
            f"jobs.{given[0]} is for Hydra's basic launcher and sweeper: leave it out, or leave "
            "out hydra/launcher and hydra/sweeper (joblib has hydra.launcher.n_jobs)."
        )
    if jobs.trials is not None and not multirun.swept:
        raise ValueError("jobs.trials needs values to search over, e.g. model.ratio=4,8,16.")


def refuse_missing_launchers(command: Command) -> None:
    """Raise a ValueError if the launcher is not installed; Hydra would only list the others."""
    chosen = command.value("hydra/launcher") or ""
    for name in _EXTRAS:
        if chosen.startswith(name) and not _is_installed(f"hydra_plugins.hydra_{name}_launcher"):
            raise ValueError(
                f'hydra/launcher={name} is not installed: pip install "se_lightning[{name}]".'
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


@contextlib.contextmanager
def _ends_by_signal(pool: Pool) -> Iterator[None]:
    """End the pool's jobs, and then the block, on Ctrl-C, SIGTERM or a closed terminal."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Interrupted(number, "the jobs of the multirun were stopped")

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                before[number] = signal.signal(number, leave)
    try:
        yield
    except BaseException as error:
        pool.stop(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
