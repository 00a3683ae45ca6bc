"""Search for the best score: optuna proposes the trials, the pool runs them.

Each proposal depends on the seed, the trial's number and the trials before only, so that a search
that was cut goes on as it would have.
"""

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf, open_dict

from se_lightning.cli.sweep.pool import Job, gpus_asked, read_result
from se_lightning.cli.sweep.sweep import Sweep, command, environment, of_a_job

if TYPE_CHECKING:
    import optuna

__all__ = ["distribution", "search"]

JOURNAL = "study.journal"


def search(sweep: Sweep) -> None:
    """Run the trials that `jobs.trials` asks for, less those that an earlier process has done.

    Raises:
        ValueError: if optuna is not installed, or it is not clear what to search over, or for.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError('jobs.trials needs optuna: pip install "se_lightning[search]".')
    config = sweep.multirun.config
    checkpoint = config.callbacks.get("checkpoint")
    if checkpoint is None:
        raise ValueError(
            "jobs.trials compares scores, which callbacks.checkpoint keeps: leave that in."
        )
    distributions = {o.get_key_element(): distribution(o) for o in sweep.multirun.swept}
    study = _study(sweep.dir, "maximize" if checkpoint.mode == "max" else "minimize")
    _write_multirun(sweep)
    _tell(study, sweep.dir)
    for trial in _unfinished(study):
        sweep.start(_job(sweep, trial.number, trial.params))
    for _ in range(config.jobs.trials - len(study.trials)):
        _tell(study, sweep.dir)  # before the next is asked for: it learns from them
        study.sampler = _sampler(config.seed, len(study.trials))
        asked = study.ask(distributions)
        sweep.start(_job(sweep, asked.number, asked.params))
    sweep.pool.wait()
    _tell(study, sweep.dir)
    _tell_best(study, sweep, str(checkpoint.monitor))


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """Translate Hydra's sweep syntax.

    Raises:
        ValueError: if optuna has no such thing.
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
    # As text: what is chosen from may be lists, too.
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _study(folder: Path, direction: Any) -> "optuna.Study":
    """Open the study in a folder, or begin one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Left where a process was killed: the folder is ours, so that nobody can hold it.
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


def _tell(study: "optuna.Study", folder: Path) -> None:
    """Tell the study of the trials that have ended since."""
    from optuna.trial import TrialState

    for trial in _unfinished(study):
        result = read_result(folder / str(trial.number))
        score = result.get("score")
        if result.get("status") == "completed" and score is not None and math.isfinite(score):
            study.tell(trial.number, score)
        elif result.get("status") in ("completed", "failed"):
            study.tell(trial.number, state=TrialState.FAIL)


def _job(sweep: Sweep, number: int, params: dict[str, Any]) -> Job:
    """Make a trial a command."""
    options = sweep.multirun.options
    names = ["--config-name", options.config_name or "train"]
    if options.config_dir:
        names += ["--config-dir", str(Path(options.config_dir).absolute())]
    chosen = [f"{key}={value}" for key, value in params.items()]
    print(f"trial {number}: {' '.join(chosen)}", flush=True)
    overrides = of_a_job([*sweep.multirun.fixed, *chosen])
    gpus = gpus_asked(sweep.multirun.compose(overrides).trainer, sweep.gpus) if sweep.gpus else 0
    return Job(
        number,
        sweep.dir / str(number),
        command(names, overrides, sweep.dir / str(number), number),
        environment(sweep.dir, ",".join(chosen)),
        [override for override in overrides if not override.startswith("hydra")],
        gpus,
    )


def _write_multirun(sweep: Sweep) -> None:
    """Write what `jobs.resume` reads, as Hydra does for a multirun of its own."""
    config = sweep.multirun.config.copy()
    given = sweep.multirun.options.overrides
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config):
        config.hydra.overrides.task = [o for o in given if not o.startswith("hydra")]
        config.hydra.overrides.hydra = [o for o in given if o.startswith("hydra")]
        config.hydra.job.config_name = sweep.multirun.options.config_name or "train"
        if sweep.multirun.options.config_dir:
            path = str(Path(sweep.multirun.options.config_dir).absolute())
            source = {"path": path, "schema": "file", "provider": "command-line"}
            config.hydra.runtime.config_sources.append(source)
    OmegaConf.save(config, sweep.dir / "multirun.yaml")


def _tell_best(study: "optuna.Study", sweep: Sweep, monitor: str) -> None:
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return
    best = study.best_trial
    chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
    sweep.remark = f"Best: trial {best.number}, {monitor} {best.value:.5g}: {chosen}"
