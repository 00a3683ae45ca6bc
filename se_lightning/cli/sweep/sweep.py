"""Multiruns: a fresh process a job, and a table of what came out.

Lightning starts the further ranks of a job by running ``sys.argv`` again; in a multirun that
would be the whole multirun, once a rank. And what a job leaves behind in its process (ranks,
process group, W&B run) is there for the next. So each job is a command of its own.
"""

import contextlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from se_lightning.cli.errors import JobError
from se_lightning.cli.run.folder import ABOUT_MULTIRUNS, claim, quoted
from se_lightning.cli.sweep import resume as unfinished
from se_lightning.cli.sweep.multirun import Multirun
from se_lightning.cli.sweep.pool import (
    CONSOLE,
    Job,
    Pool,
    Stopped,
    gpus_asked,
    read_result,
    visible_gpus,
)
from se_lightning.cli.sweep.summary import read_results, write_summary
from se_lightning.ranks import CHILD, INHERITED, Interrupted, external_rank

__all__ = [
    "Sweep",
    "command",
    "environment",
    "lead",
    "of_a_job",
    "refuse_missing_launchers",
    "run_job",
]

# Of an outer W&B run, into which no job may write.
_WANDB_RUN = ("WANDB_RUN_ID", "WANDB_RESUME")
# Overrides that are about the multirun and not about a job.
_SWEEP_ONLY = ("jobs.", *ABOUT_MULTIRUNS)
_EXTRAS = ("joblib", "submitit")  # launchers of Hydra's that are installed apart


class Sweep:
    """A multirun that this process leads: its directory, its pool, and its GPUs.

    Args:
        multirun: what the command line asks for.

    Raises:
        ValueError: if it asks for what cannot be, or its directory is not free.
    """

    def __init__(self, multirun: Multirun) -> None:
        jobs = multirun.config.jobs
        _check(multirun)
        self.multirun = multirun
        self.searches = jobs.trials is not None
        gpus = visible_gpus() if jobs.parallel > 1 else []
        points = [multirun.config] if self.searches else multirun.points()
        # All are asked, so that what cannot be is said before the first job.
        asked = [gpus_asked(point.trainer, gpus) for point in points] if gpus else []
        self.gpus = gpus if any(asked) else []
        self.pool = Pool(jobs.parallel, gpus=self.gpus, fail_fast=jobs.fail_fast)
        self.shown = Path(multirun.config.hydra.sweep.dir)
        self.dir = self.shown.absolute()
        self.remark = ""  # what is to be read under the table

    def start(self, job: Job) -> None:
        """Start what is not done of a job, and wait until there is room for another one."""
        left = unfinished.left_of(job)
        if left is not None:
            self.pool.start(left)
            self.pool.wait(self.pool.parallel - 1)

    def tell(self) -> None:
        """Write the table, print it, and say where it is and what is left to do."""
        results = read_results(self.dir)
        if not results:
            return
        write_summary(self.dir)
        summary = self.dir / "summary.md"
        print(f"\n{summary.read_text()}\n{self.shown}/summary.md")
        if self.remark:
            print(self.remark)
        if any(result["status"] != "completed" for result in results):
            print(f"To run what is not done: python -m se_lightning -m jobs.resume={self.shown}")

    def raise_failures(self) -> None:
        """Say which jobs did not come to their end.

        Raises:
            JobError: if there are any.
        """
        results = {result["job"]: result for result in read_results(self.dir)} | self.pool.results
        kinds: dict[str, list[str]] = {}
        for number, result in sorted(results.items()):
            first = (result.get("error", "").splitlines() or [""])[0]
            kinds.setdefault(result["status"], []).append(f"{number} ({first})")
        if bad := {kind: jobs for kind, jobs in kinds.items() if kind != "completed"}:
            parts = [
                f"{len(j)} of {len(results)} jobs {kind}: {', '.join(j)}" for kind, j in bad.items()
            ]
            raise JobError(
                "; ".join(parts)
                + "; jobs.fail_fast has started no more" * self.pool.fail_fast
                + f"\nWhat each said: {self.shown}/JOB/{CONSOLE}" * (self.pool.parallel > 1)
                + f"\nAll jobs: {self.shown}/summary.md"
            )


_sweep: Sweep | None = None  # that this process leads


@contextlib.contextmanager
def lead(multirun: Multirun | None, *, resumed: bool = False) -> Iterator[Sweep | None]:
    """Lead a multirun: its jobs end with this block, in one way or another, and are in its table.

    Args:
        multirun: what the command line asks for; None is a single run, which needs no lead.
        resumed: its directory may hold jobs already.

    Raises:
        JobError: if a job failed.
    """
    global _sweep
    if multirun is None:
        yield None
        return
    sweep = Sweep(multirun)
    if not resumed:
        unfinished.refuse_used(sweep.dir)
    claim(sweep.dir, "hydra.sweep.dir")
    _pin_directory(sys.argv, multirun)
    _sweep = sweep
    try:
        with _ends_by_signal(sweep.pool):
            yield sweep
            sweep.pool.wait()
    except (Stopped, JobError):
        pass  # told below, with all others
    finally:
        _sweep = None
        sweep.tell()
    sweep.raise_failures()


def run_job(cfg: DictConfig) -> float | None:
    """Run the job that Hydra is at in a process of its own.

    Where Hydra itself runs one job after the other, this returns as soon as there is room for the
    next; other launchers and sweepers wait for the result.

    Returns:
        The score that the job reports to a sweeper.

    Raises:
        JobError: if it failed, and was waited for.
    """
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.runtime.cwd, hydra.sweep.dir)
    if _sweep is not None and _sweep.multirun.is_basic:
        _sweep.start(_job(cfg, _sweep.gpus))
        write_summary(sweep_dir)
        return None
    pool, job = Pool(), _job(cfg)
    left = unfinished.left_of(job)
    if left is not None:
        with _ends_by_signal(pool):
            pool.start(left)
            pool.wait()
    write_summary(sweep_dir)
    result = pool.results.get(job.number) or read_result(job.run_dir)
    if result["status"] != "completed":
        raise JobError(f"job {job.number} failed: {result['error']}")
    return result["score"]


def _job(cfg: DictConfig, gpus: Sequence[str] = ()) -> Job:
    """Make Hydra's job a command."""
    hydra = HydraConfig.get()
    options = ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":  # --config-dir
            options += ["--config-dir", source.path]
    run_dir = Path(hydra.runtime.output_dir)
    # As they were typed: what they refer to may be outside of Hydra's own node.
    given: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return Job(
        hydra.job.num,
        run_dir,
        # .hydra is there already
        [*command(options, given["task"] + given["hydra"], run_dir, hydra.job.num),
         "hydra.output_subdir=null"],
        environment(Path(hydra.sweep.dir), hydra.job.override_dirname),
        of_a_job(given["task"]),
        gpus_asked(cfg.trainer, gpus) if gpus else 0,
        Path(hydra.runtime.cwd),
    )  # fmt: skip


def of_a_job(overrides: Sequence[str]) -> list[str]:
    """Leave out the overrides that are about the multirun."""
    return [override for override in overrides if not override.lstrip("+~").startswith(_SWEEP_ONLY)]


def command(
    options: Sequence[str], overrides: Sequence[str], run_dir: Path, number: int
) -> list[str]:
    """Return the command of a job."""
    return [
        *(sys.executable, "-m", "se_lightning"),
        *options,
        *of_a_job(overrides),
        f"hydra.run.dir={quoted(run_dir)}",
        f"hydra.job.num={number}",
    ]


def environment(sweep_dir: Path, name: str) -> dict[str, str]:
    """Return the environment of a job: no ranks and no W&B run of this process."""
    kept = {k: v for k, v in os.environ.items() if k not in (*INHERITED, *_WANDB_RUN)}
    kept.setdefault("WANDB_RUN_GROUP", sweep_dir.name)
    kept.setdefault("WANDB_NAME", name or "defaults")
    return kept | {CHILD: "1"}


def _check(multirun: Multirun) -> None:
    """Refuse settings of ``jobs`` that nobody would follow."""
    jobs = multirun.config.jobs
    trials = 1 if jobs.trials is None else jobs.trials
    for name, value in (("parallel", jobs.parallel), ("trials", trials)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`jobs.{name}` (={value}) must be a whole number of at least 1.")
    if not isinstance(jobs.fail_fast, bool):
        raise ValueError(f"`jobs.fail_fast` (={jobs.fail_fast}) must be true or false.")
    ours = [name for name, off in (("parallel", 1), ("fail_fast", False), ("trials", None))
            if jobs[name] != off]  # fmt: skip
    if ours and external_rank() is not None:
        raise ValueError(f"jobs.{ours[0]} is for processes of its own: start it without torchrun.")
    if ours and not multirun.is_basic:
        raise ValueError(
            f"jobs.{ours[0]} is for Hydra's basic launcher and sweeper: leave it out, or leave "
            "out hydra/launcher and hydra/sweeper (joblib has hydra.launcher.n_jobs)."
        )
    if jobs.trials is not None and not multirun.swept:
        raise ValueError("jobs.trials searches over values: give some, as model.ratio=4,8,16.")


def refuse_missing_launchers(argv: Sequence[str]) -> None:
    """Say what to install for a launcher; Hydra would only say which others there are."""
    for name in _EXTRAS:
        chosen = any(argument.startswith(f"hydra/launcher={name}") for argument in argv)
        if chosen and importlib.util.find_spec(f"hydra_plugins.hydra_{name}_launcher") is None:
            raise ValueError(
                f'hydra/launcher={name} is installed apart: pip install "se_lightning[{name}]".'
            )


def _pin_directory(argv: list[str], multirun: Multirun) -> None:
    """Keep the directory whose time stamp would be another one when Hydra composes again."""
    node = multirun.config.hydra.sweep
    if "${now:" in str(OmegaConf.to_container(node)["dir"]):  # type: ignore[index, call-overload]
        argv.append(f"hydra.sweep.dir={quoted(Path(node.dir))}")


@contextlib.contextmanager
def _ends_by_signal(pool: Pool) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a terminal that closes end the pool's jobs, and then the block."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Interrupted(number, "the jobs of the multirun are ended")

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
