"""Search for the best score: optuna proposes the trials, the pool runs them.

Each proposal depends only on the seed, the number of the trial and the trials before it, so that
an interrupted search continues as it would have without the interruption.
"""

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf, open_dict

from se_lightning.cli.run.folder import MULTIRUN, RunFolder
from se_lightning.cli.sweep.pool import Job, gpus_needed
from se_lightning.cli.sweep.sweep import Sweep, environment

if TYPE_CHECKING:
    import optuna

__all__ = ["distribution", "search"]

JOURNAL = "study.journal"


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
    study = _study(sweep.dir, "maximize" if checkpoint.mode == "max" else "minimize")
    _write_multirun(sweep)
    _record(study, sweep.dir)
    for trial in _unfinished(study):
        sweep.start(_job(sweep, trial.number, trial.params))
    for _ in range(config.jobs.trials - len(study.trials)):
        _record(study, sweep.dir)  # before the next proposal, which learns from them
        study.sampler = _sampler(config.seed, len(study.trials))
        asked = study.ask(distributions)
        sweep.start(_job(sweep, asked.number, asked.params))
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


def _study(folder: Path, direction: Any) -> "optuna.Study":
    """Open the study in a folder, or start one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Left by a killed process: this one holds the folder, so no other can hold the lock.
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(
        storage=storage, study_name="search", direction=direction, load_if_exists=True
    )


def _sampler(seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """Return the sampler of one trial."""
    from numpy.random import SeedSequence
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(SeedSequence([seed, number]).generate_state(1)[0]))


def _unfinished(study: "optuna.Study") -> Iterable["optuna.trial.FrozenTrial"]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.RUNNING,))


def _record(study: "optuna.Study", folder: Path) -> None:
    """Add the trials that have ended to the study."""
    from optuna.trial import TrialState

    for trial in _unfinished(study):
        result = RunFolder(folder / str(trial.number)).result()
        score = result.get("score")
        if result.get("status") == "completed" and score is not None and math.isfinite(score):
            study.tell(trial.number, score)
        elif result.get("status") in ("completed", "failed"):
            study.tell(trial.number, state=TrialState.FAIL)


def _job(sweep: Sweep, number: int, params: dict[str, Any]) -> Job:
    """Return a trial as a job."""
    chosen = [f"{key}={value}" for key, value in params.items()]
    print(f"trial {number}: {' '.join(chosen)}", flush=True)
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
    OmegaConf.save(config, sweep.dir / MULTIRUN)


def _report_best(study: "optuna.Study", sweep: Sweep, monitor: str) -> None:
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return
    best = study.best_trial
    chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
    sweep.remark = f"Best: trial {best.number}, {monitor} {best.value:.5g}: {chosen}"
