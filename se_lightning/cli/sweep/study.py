"""The trials of a search: optuna's study, in a journal in the folder of the multirun.

The folders of the jobs have the parameters and the results of the trials too, so a search survives
a journal that is cut short or lost.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_lightning.atomic import write_text
from se_lightning.cli.command import Command, unquoted
from se_lightning.cli.run.folder import RunFolder

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

__all__ = ["JOURNAL", "open_study", "propose"]

JOURNAL = "study.journal"
# Operations in optuna's journal.
_CREATE_TRIAL, _SET_PARAMETER = 4, 5


def open_study(folder: Path, direction: Any, parameters: int) -> "optuna.Study":
    """Open the study in a folder, or start one.

    Args:
        folder: The folder of the multirun, which this process holds.
        direction: ``maximize`` or ``minimize``.
        parameters: Number of parameters of a trial.

    Raises:
        ValueError: If optuna cannot read the journal.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Left by a killed process: this one holds the folder, so no other can hold the lock.
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    journal = folder / JOURNAL
    _cut_after_last_trial(journal, parameters)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(
            storage=storage, study_name="search", direction=direction, load_if_exists=True
        )
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{journal} is damaged. Remove it: the search then reads its trials from their folders."
        ) from error


def propose(
    study: "optuna.Study", folder: Path, distributions: dict[str, "BaseDistribution"], seed: int
) -> "optuna.Trial":
    """Return the next trial.

    If its job has been started before, the trial has the parameters of the job.
    """
    number = len(study.trials)
    study.sampler = _sampler(seed, number)
    started = _started(RunFolder(folder / str(number)), distributions)
    if started:
        study.enqueue_trial(started)
    return study.ask(distributions)


def _cut_after_last_trial(journal: Path, parameters: int) -> None:
    """Remove a damaged end of the journal, or a last trial without all of its parameters.

    A killed process leaves such a trial between two writes, and a power failure a damaged end, to
    which optuna would append.
    """
    if not journal.exists():
        return
    content = journal.read_bytes()
    end = trial = given = 0
    trials = False
    for line in content.splitlines(keepends=True):
        operation = _operation(line)
        if operation is None:
            break
        if operation == _CREATE_TRIAL:
            trials, trial, given = True, end, 0
        given += operation == _SET_PARAMETER
        end += len(line)
    if trials and given < parameters:
        end = trial
    if end < len(content):
        write_text(journal, content[:end].decode())


def _operation(line: bytes) -> int | None:
    """Return the operation of a line of the journal; None if the line is damaged."""
    try:
        operation = json.loads(line)["op_code"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
    return operation if isinstance(operation, int) else None


def _sampler(seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """Return the sampler of one trial."""
    from numpy.random import SeedSequence
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(SeedSequence([seed, number]).generate_state(1)[0]))


def _started(folder: RunFolder, distributions: dict[str, "BaseDistribution"]) -> dict[str, Any]:
    """Return the parameters with which a job has been started; none if it has not been started."""
    if not folder.is_composed:
        return {}
    command = Command.recorded(folder.hydra())
    return {key: _value(each, command.value(key)) for key, each in distributions.items()}


def _value(distribution: Any, text: str | None) -> Any:
    """Return the value that an override of a job gave as text."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return next(choice for choice in distribution.choices if unquoted(str(choice)) == text)
    return type(distribution.low)(text)
