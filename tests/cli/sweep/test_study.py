"""The journal of a search, cut short or lost."""

import random

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.sweep.study import open_study, propose

optuna = pytest.importorskip("optuna")

TRIALS = 6


def distributions():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        "model.ratio": CategoricalDistribution(["4", "'8'", "[1,2]"]),
        "optimizer.lr": FloatDistribution(0.01, 1, log=True),
        "seed": IntDistribution(0, 9),
    }


def score(params):
    return params["optimizer.lr"] + params["seed"]


def ask(folder, trials=TRIALS):
    """Continue a search of jobs that end at once, and return the parameters of all trials."""
    study = open_study(folder, "minimize", 3)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, score(trial.params))
    while len(study.trials) < trials:
        trial = propose(study, folder, distributions(), seed=0)
        recorded = {
            "job": {"config_name": "train"},
            "runtime": {"config_sources": []},
            "overrides": {"task": [f"{k}={v}" for k, v in trial.params.items()], "hydra": []},
        }
        hydra = folder / str(trial.number) / ".hydra"
        hydra.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create({"hydra": recorded}), hydra / "hydra.yaml")
        study.tell(trial.number, score(trial.params))
    return [(trial.params, trial.value) for trial in study.trials]


@pytest.fixture
def search(tmp_path):
    """The folder of a search, and its trials."""
    folder = tmp_path / "s"
    folder.mkdir()
    return folder, ask(folder)


@pytest.mark.parametrize("end", [b"", b"\0" * 40, b'{"op_code":4,"study_id"', b"[]\n", b"4\n"])
def test_a_journal_cut_anywhere_continues_with_the_same_trials(search, end):
    folder, trials = search
    journal = folder / "study.journal"
    whole = journal.read_bytes()
    dice = random.Random(len(end))
    for length in (0, 1, *(dice.randrange(len(whole)) for _ in range(6))):
        journal.write_bytes(whole[:length] + end)
        assert ask(folder) == trials, length
        assert [number for number in range(9) if (folder / str(number)).exists()] == [*range(6)]


def test_without_its_job_folders_a_cut_search_proposes_the_same_trials(search, tmp_path):
    """A process was killed while it wrote the parameters of a trial."""
    folder, trials = search
    lines = (folder / "study.journal").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines), 4):
        cut = tmp_path / f"cut {count}"
        cut.mkdir()
        (cut / "study.journal").write_bytes(b"".join(lines[:count]))
        assert ask(cut) == trials, count


def test_a_lost_journal_is_rebuilt_from_the_job_folders(search):
    """Also if the jobs have other parameters than the sampler would propose."""
    folder, trials = search
    (folder / "study.journal").unlink()
    path = folder / "3" / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text().replace(f"seed={trials[3][0]['seed']}", "seed=7"))
    assert ask(folder, 4)[:3] == trials[:3]
    assert ask(folder, 4)[3][0] == trials[3][0] | {"seed": 7}


def test_a_journal_that_optuna_cannot_read_is_named(search):
    folder, _ = search
    (folder / "study.journal").write_text('{"op_code": 99}\n')
    with pytest.raises(ValueError, match=r"s/study.journal is damaged. Remove it"):
        ask(folder)
