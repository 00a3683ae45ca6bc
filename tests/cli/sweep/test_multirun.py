"""Composing a multirun before Hydra runs it."""

import csv

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.sweep.multirun import Multirun

SWEPT = "hydra: {mode: MULTIRUN, sweeper: {params: {model.ratio: '2,4'}}}\n"
PRIMARY = "defaults: [train, _self_]\n"
# Where a multirun can be kept: the files, and the command line that goes with them.
KEPT = {
    "an experiment": (
        {"experiment/mine.yaml": f"# @package _global_\n{SWEPT}"},
        ["--config-dir", "conf", "+experiment=mine"],
    ),
    "a primary config": (
        {"mine.yaml": PRIMARY + SWEPT},
        ["--config-dir", "conf", "--config-name", "mine"],
    ),
    "a primary config in a folder of its own": (
        {"mine.yaml": PRIMARY + "hydra: {mode: MULTIRUN, searchpath: [pkg://se_lightning.conf],"
         " sweeper: {params: {model.ratio: 'choice(2,4)'}}}"},
        ["--config-path", "{folder}/conf", "--config-name", "mine"],
    ),
    "a primary config with a model to choose": (
        {"mine.yaml": "defaults:\n- train\n- override model: ???\n- _self_\n"
                      "hydra: {mode: MULTIRUN}"},
        ["--config-dir", "conf", "--config-name", "mine", "model=se_resnet20,se_resnet32"],
    ),
    "a sweeper": (
        {"hydra/sweeper/mine.yaml": "defaults: [basic]\nparams: {model.ratio: '2,4'}\n"},
        ["-m", "--config-dir", "conf", "hydra/sweeper=mine"],
    ),
    "a sweeper that an experiment chooses": (
        {"hydra/sweeper/mine.yaml": "defaults: [basic]\nparams: {model.ratio: 'range(2,6,2)'}\n",
         "experiment/mine.yaml": "# @package _global_\ndefaults: [override /hydra/sweeper: mine]\n"
         "hydra: {mode: MULTIRUN}\n"},
        ["--config-dir", "conf", "+experiment=mine"],
    ),
    "a group that any option can join": (
        {"study/mine.yaml": f"# @package _global_\n{SWEPT}"},
        ["--config-dir", "conf", "+study=mine"],
    ),
    "the command line": ({}, ["hydra.mode=MULTIRUN", "model.ratio=2,4"]),
    "the command line, as the number of the mode": ({}, ["hydra.mode=2", "model.ratio=2,4"]),
}  # fmt: skip


def composed(*arguments):
    return Multirun.composed(Command.parse(arguments))


@pytest.fixture(params=KEPT)
def kept(request, tmp_path, monkeypatch):
    """Write the files of a multirun that is kept in them, and return its command line."""
    monkeypatch.chdir(tmp_path)
    files, arguments = KEPT[request.param]
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [argument.format(folder=tmp_path) if "{folder}" in argument else argument
            for argument in arguments]  # fmt: skip


def test_a_multirun_is_read_from_the_composed_config_and_its_jobs_are_runs(kept, tmp_path):
    multirun = composed(*kept, "jobs.parallel=2")
    assert len(list(multirun.points())) == 2
    change = multirun.swept[0].input_line.partition(",")[0].replace("choice(", "")
    job = multirun.command.for_job(tmp_path / "0", 0, change.replace("range(", ""))
    assert not job.is_multirun
    assert Multirun.composed(job) is None


def test_what_the_command_line_says_of_a_multirun_wins(kept):
    alone = Command.parse(["hydra.mode=RUN", *(a for a in kept if a != "-m" and "," not in a)])
    assert not alone.with_("hydra.mode=RUN", "model=se_resnet20").is_multirun


@pytest.mark.slow
def test_a_multirun_kept_in_a_file_runs_each_job_once(cli, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        KEPT["an experiment"][0].popitem()[1]
    )
    (tmp_path / "planted.py").write_text("def nothing():\n    return {}\n")
    done = cli("--config-dir", "conf", "+experiment=mine", "task={_target_: planted.nothing}",
               "trust=true", env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    (sweep,) = (tmp_path / "multirun").iterdir()
    with (sweep / "summary.csv").open() as file:
        rows = [(row["model.ratio"], row["status"]) for row in csv.DictReader(file)]
    assert rows == [("2", "completed"), ("4", "completed")], done.stdout
    assert sorted(path.name for path in tmp_path.rglob("multirun.yaml")) == ["multirun.yaml"]
    recorded = OmegaConf.load(sweep / "0" / ".hydra" / "hydra.yaml").hydra
    assert not Command.recorded(recorded).of_run().given("hydra.mode")


def test_multirun_options_are_refused_in_a_single_run():
    with pytest.raises(ValueError, match=r"jobs\.parallel=2 is an option of multiruns"):
        composed("jobs.parallel=2", "model.ratio=4")
    assert composed("model.ratio=4") is None


def test_a_multirun_knows_its_points_and_its_folder():
    multirun = composed("-m", "model.ratio=4,8", "seed=1,2", "trainer.max_epochs=1")
    found = [
        (point.model.ratio, point.seed, point.trainer.max_epochs) for point in multirun.points()
    ]
    assert found == [(4, 1, 1), (4, 2, 1), (8, 1, 1), (8, 2, 1)]
    assert multirun.is_basic
    assert multirun.fixed == ["trainer.max_epochs=1"]
    assert [override.get_key_element() for override in multirun.swept] == ["model.ratio", "seed"]
    # The time stamp is fixed here and not taken again by Hydra.
    assert multirun.command.value("hydra.sweep.dir").endswith(multirun.config.hydra.sweep.dir)


def test_a_multirun_that_hydra_refuses_is_left_to_hydra():
    assert composed("-m", "model=nope") is None
    assert composed("-m", "model.ratio=4,8", "--cfg", "job") is None


def test_jobs_are_named_by_what_differs_between_them():
    multirun = composed("-m", "model.ratio=2,4", "trainer.max_epochs=1", "seed=3", "logger=csv")
    (excluded,) = [each for each in multirun.command.overrides if "exclude_keys" in each]
    assert excluded.endswith("exclude_keys=[trainer.max_epochs,seed,logger]")
    chosen = "hydra.job.config.override_dirname.exclude_keys=[seed]"
    kept = composed("-m", "model.ratio=2,4", "seed=3", chosen)
    assert [each for each in kept.command.overrides if "exclude_keys" in each] == [chosen]
