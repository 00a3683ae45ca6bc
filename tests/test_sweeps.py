import csv
import json

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning import sweeps


def rows(sweep):
    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_job_has_the_ranks_that_it_asks_for(cli, short, tmp_path, wandb_run):
    """In one process the second job would train on half the data, with exit code 0."""
    done = cli("-m", "+model=se_resnet20", "trainer.devices=1,2,1", *short)
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert [row["world size"] for row in rows(sweep)] == ["1", "2", "1"]
    assert [row["status"] for row in rows(sweep)] == ["completed"] * 3
    for job, devices in enumerate((1, 2, 1)):
        name, group = wandb_run(sweep / str(job))
        assert group == sweep.name
        assert f"trainer.devices={devices}" in name
    assert (sweep / "summary.md").read_text() in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_a_failing_job_has_its_row_and_the_others_run(cli, short, tmp_path):
    sweep = tmp_path / "a sweep, with = signs"
    done = cli(
        "-m", "model=se_resnet20,se_resnet32", "model.ratio=8,0", *short, "logger=csv",
        f"hydra.sweep.dir='{sweep}'", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    found = rows(sweep)
    assert [row["status"] for row in found] == ["completed", "failed"] * 2
    assert [row["model"] for row in found] == ["se_resnet20"] * 2 + ["se_resnet32"] * 2
    assert found[0]["hidden widths"] == "2 4 8"
    assert int(found[0]["parameters"]) < int(found[2]["parameters"])
    assert "`ratio` (=0) must be" in found[1]["error"]
    assert done.stderr.rstrip().endswith(f"All jobs: {sweep}/summary.md")
    assert "job 1 failed: model: `ratio` (=0)" in done.stderr


RESULTS = [
    {
        "job": 10, "status": "completed", "overrides": ["model.ratio=8", "trainer.max_epochs=1"],
        "hidden_widths": {"a": 2, "b": 2, "c": 4}, "parameters": 7, "world_size": 1,
        "metrics": {"val/acc1": 0.5, "test/acc1": 0.123456789}, "wall_time_s": 1.5,
    },
    {
        "job": 2, "status": "failed", "overrides": ["model.ratio=0", "trainer.max_epochs=1"],
        "error": "bad\nratio | of 0",
    },
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    for result in RESULTS:
        folder = tmp_path / str(result["job"])
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
    sweeps.write_summary(tmp_path)
    return tmp_path


def test_the_csv_has_everything_in_the_order_of_jobs(sweep):
    failed, completed = rows(sweep)
    assert (failed["job"], completed["job"]) == ("2", "10")
    assert failed["error"] == "bad ratio | of 0"
    assert completed["val/acc1"] == "0.5"
    assert completed["hidden widths"] == "2 4"
    assert list(completed)[:2] == ["job", "status"]
    assert list(completed)[-3:] == ["world size", "wall time, s", "error"]


def test_the_markdown_is_what_one_compares(sweep):
    text = (sweep / "summary.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "All jobs: `trainer.max_epochs=1`"
    assert lines[2].split("|")[1:4] == [" job ", " status    ", " model.ratio "]
    assert "val/acc1" not in text
    assert "0.12346" in text
    assert "bad ratio \\| of 0" in text
    assert len({line.replace("\\|", "##").count("|") for line in lines[2:]}) == 1
    assert len({len(line) for line in lines[2:]}) == 1


@pytest.fixture
def job(tmp_path, monkeypatch):
    config = OmegaConf.create(
        {
            "job": {"config_name": "train", "num": 3, "override_dirname": "model.ratio=4"},
            "runtime": {
                "output_dir": str(tmp_path / '3 "x'),
                "config_sources": [{"provider": "command-line", "path": "/mine"}],
            },
            "sweep": {"dir": str(tmp_path)},
            "overrides": {
                "task": ["model.ratio=4"],
                "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.verbose=true"],
            },
        }
    )
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))
    return tmp_path


def test_a_job_is_a_command_of_its_own(job):
    command = sweeps._command(job / '3 "x')
    assert command[1:] == [
        "-m", "se_lightning", "--config-name", "train", "--config-dir", "/mine",
        "model.ratio=4", "hydra.verbose=true",
        f'hydra.run.dir="{job}/3 \\"x"', "hydra.job.num=3", "hydra.output_subdir=null",
    ]  # fmt: skip


def test_a_job_inherits_no_rank_and_no_wandb_run(job, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PL_GLOBAL_SEED", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    environment = sweeps._environment()
    assert "KEPT" in environment
    assert not {"LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PL_GLOBAL_SEED"} & set(environment)
    assert "WANDB_RUN_ID" not in environment
    assert environment["WANDB_RUN_GROUP"] == job.name
    assert environment["WANDB_NAME"] == "model.ratio=4"


def test_a_job_that_dies_without_a_word_has_its_row(job, monkeypatch):
    (job / "3").mkdir()
    HydraConfig.get().runtime.output_dir = str(job / "3")
    monkeypatch.setattr(sweeps, "_command", lambda _: ["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(sweeps.JobError, match="the process ended with exit code -9"):
        sweeps.run_job()
    assert rows(job)[0]["error"] == "the process ended with exit code -9"
