"""Search for the best score: optuna proposes the trials, the pool runs them.

Each proposal depends only on the seed, the number of the trial and the trials before it, so that
an interrupted search continues as it would have without the interruption.
"""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf, open_dict

from se_lightning.atomic import write_text
from se_lightning.cli.console import say
from se_lightning.cli.run.folder import MULTIRUN, RunFolder
from se_lightning.cli.sweep.pool import Job, gpus_needed
from se_lightning.cli.sweep.study import open_study, propose
from se_lightning.cli.sweep.sweep import Sweep, environment

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["distribution", "search"]


def search(sweep: Sweep) -> None:
    """Run the trials that `jobs.trials` requests, except those that are already done.

    Raises:
        ValueError: If optuna is not installed, or no checkpoint callback defines the score.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError('jobs.trials needs optuna: pip install "se_lightning[search]".')
    config = sweep.multirun.config
    checkpoint = config.callbacks.get("checkpoint")
    if checkpoint is None:
        raise ValueError(
            "jobs.trials compares the scores of callbacks.checkpoint, which this config lacks."
        )
    distributions = {o.get_key_element(): distribution(o) for o in sweep.multirun.swept}
    direction = "maximize" if checkpoint.mode == "max" else "minimize"
    study = open_study(sweep.dir, direction, len(distributions))
    _write_multirun(sweep)
    for trial in study.trials:
        _start_unless_ended(sweep, trial)
    for _ in range(config.jobs.trials - len(study.trials)):
        _record(study, sweep.dir)  # before the next proposal, which learns from them
        _start_unless_ended(sweep, propose(study, sweep.dir, distributions, config.seed))
    sweep.pool.wait()
    _record(study, sweep.dir)
    _report_best(study, sweep, str(checkpoint.monitor))


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """Translate Hydra's sweep syntax into an optuna distribution.

    Raises:
        ValueError: If optuna has no equivalent.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    if tags - {"log"}:
        raise ValueError(f"{override.input_line}: the only tag of a search is `log`.")
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low or 0), float(high or 0), log=log)
    if log:
        raise ValueError(f"{override.input_line}: `log` is for an interval(LOW, HIGH).")
    values = list(override.sweep_iterator())
    if isinstance(value, RangeSweep) and all(isinstance(v, int) for v in values):
        step = abs(int(value.step))
        return IntDistribution(min(values), max(values), step=step)  # type: ignore[type-var, arg-type]
    # As text, since the choices may be lists.
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _record(study: "optuna.Study", folder: Path) -> None:
    """Add the trials that have ended to the study."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        result = RunFolder(folder / str(trial.number)).result()
        score = result.get("score")
        if result.get("status") == "completed" and score is not None and math.isfinite(score):
            study.tell(trial.number, score)
        elif result.get("status") in ("completed", "failed"):
            study.tell(trial.number, state=TrialState.FAIL)


def _start_unless_ended(sweep: Sweep, trial: "optuna.Trial | FrozenTrial") -> None:
    """Start the job of a trial, unless it has completed or failed."""
    result = RunFolder(sweep.dir / str(trial.number)).result()
    if result.get("status") not in ("completed", "failed"):
        sweep.start(_job(sweep, trial.number, trial.params))


def _job(sweep: Sweep, number: int, params: dict[str, Any]) -> Job:
    """Return a trial as a job."""
    chosen = [f"{key}={value}" for key, value in params.items()]
    say(f"trial {number}: {' '.join(chosen)}")
    folder = RunFolder(sweep.dir / str(number))
    command = sweep.multirun.for_jobs().for_job(folder.path, number, *chosen)
    gpus = gpus_needed(command.compose().trainer, sweep.gpus) if sweep.gpus else 0
    return Job(
        number,
        folder,
        command.line(),
        environment(sweep.dir, ",".join(chosen)),
        command.task_overrides,
        gpus,
    )


def _write_multirun(sweep: Sweep) -> None:
    """Write the file that `jobs.resume` reads, as Hydra does for its own multiruns."""
    config, command = sweep.multirun.config.copy(), sweep.multirun.command
    options, task = command.options, command.task_overrides
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config):
        config.hydra.overrides.task = task
        config.hydra.overrides.hydra = [o for o in command.overrides if o not in task]
        config.hydra.job.config_name = options.config_name or "train"
        if options.config_dir:
            path = str(Path(options.config_dir).absolute())
            source = {"path": path, "schema": "file", "provider": "command-line"}
            config.hydra.runtime.config_sources.append(source)
    write_text(sweep.dir / MULTIRUN, OmegaConf.to_yaml(config))


def _report_best(study: "optuna.Study", sweep: Sweep, monitor: str) -> None:
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return
    best = study.best_trial
    chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
    sweep.remark = f"Best: trial {best.number}, {monitor} {best.value:.5g}: {chosen}"
