import csv
import importlib.util
import subprocess
import sys

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.sweep import sweep as sweeps
from se_lightning.cli.sweep.multirun import Multirun


def rows(sweep):
    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_job_has_the_ranks_that_it_requests(cli, short, tmp_path, wandb_run):
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


def test_a_failed_job_has_a_row_and_the_others_run(cli, short, tmp_path):
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
    assert "2 of 4 jobs failed: 1 (model: `ratio` (=0) must be" in done.stderr


def test_fail_fast_starts_no_job_after_a_failure(run_main, tmp_path):
    code, error = run_main("-m", "jobs.fail_fast=true", "model.ratio=0,4,8", "hydra.sweep.dir=s")
    assert code == 1
    last = error.rpartition("se_lightning: error: ")[2]
    assert last.startswith("1 of 1 jobs failed: 0 (model: `ratio` (=0) must be")
    assert "; no further jobs were started (jobs.fail_fast)\nAll jobs: s/summary.md" in last
    assert [path.name for path in (tmp_path / "s").glob("*/")] == ["0"]
    assert len(rows(tmp_path / "s")) == 1


@pytest.fixture
def job(tmp_path, monkeypatch):
    config = OmegaConf.create(
        {
            "job": {"config_name": "train", "num": 3, "override_dirname": "model.ratio=4"},
            "runtime": {
                "cwd": str(tmp_path),
                "output_dir": str(tmp_path / '3 "x'),
                "config_sources": [{"provider": "command-line", "path": "/mine"}],
            },
            "sweep": {"dir": str(tmp_path)},
            "overrides": {
                "task": ["model.ratio=4", "jobs.parallel=2"],
                "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.verbose=true"],
            },
        }
    )
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))
    return tmp_path


CONFIG = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 2}})


def test_a_job_is_a_separate_command(job):
    made = sweeps._job(CONFIG, ["0", "1", "2"])
    assert made.command[1:] == [
        "-m", "se_lightning", "--config-name", "train", "--config-dir", "/mine",
        "model.ratio=4", "hydra.verbose=true",
        f'hydra.run.dir="{job}/3 \\"x"', "hydra.job.num=3", "hydra.mode=RUN",
        "hydra.output_subdir=null",
    ]  # fmt: skip
    assert (made.number, made.overrides, made.gpus) == (3, ["model.ratio=4"], 2)


def test_a_job_inherits_no_rank_and_no_wandb_run(job, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PL_GLOBAL_SEED", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    environment = sweeps._job(CONFIG).environment
    assert "KEPT" in environment
    assert not {"LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PL_GLOBAL_SEED"} & set(environment)
    assert "WANDB_RUN_ID" not in environment
    assert environment["WANDB_RUN_GROUP"] == job.name
    assert environment["WANDB_NAME"] == "model.ratio=4"


def test_a_killed_job_has_a_row(job, monkeypatch):
    """Under a launcher that waits for the result."""
    (job / "3").mkdir()
    HydraConfig.get().runtime.output_dir = str(job / "3")
    monkeypatch.setattr(Command, "line", lambda _: ["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(sweeps.JobError, match="the process ended with exit code -9"):
        sweeps.run_job(CONFIG)
    assert rows(job)[0]["error"] == "the process ended with exit code -9"


MISTAKES = [
    (["jobs.parallel=0", "seed=0,1"], "`jobs.parallel` (=0) must be a whole number of at least 1"),
    (["jobs.parallel=x", "seed=0,1"], "`jobs.parallel` (=x) must be a whole number"),
    (["jobs.parallel=999", "seed=0,1"], "`jobs.parallel` (=999) is more than the "),
    (["jobs.fail_fast=1", "seed=0,1"], "`jobs.fail_fast` (=1) must be true or false"),
    (["jobs.trials=0", "seed=0,1"], "`jobs.trials` (=0) must be a whole number of at least 1"),
    (["jobs.trials=3"], "jobs.trials needs values to search over"),
    (["jobs.trials=3", "seed=0,1", "callbacks=none"], "callbacks.checkpoint, which this"),
    (["jobs.trials=3", "seed=0,1", "hydra/launcher=joblib"], "jobs.trials is for Hydra's basic"),
    (["jobs.parallel=2", "seed=0,1", "hydra/launcher=joblib"], "jobs.parallel is for Hydra's ba"),
    (["jobs.resume=nowhere"], "`jobs.resume` (=nowhere) must be the folder of a multirun"),
    (
        ["jobs.resume=x", "model.ratio=4"],
        "continues a multirun with its own settings; leave out model.ratio",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_the_jobs_options_gets_one_message(run_main, tmp_path, arguments, message):
    code, error = run_main("-m", *arguments, more=())
    assert code == 1
    assert message in error.rstrip().rpartition("se_lightning: error: ")[2]
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named(run_main, monkeypatch, launcher):
    monkeypatch.setattr(importlib.util, "find_spec", hide("hydra_plugins"))
    code, error = run_main("-m", f"hydra/launcher={launcher}", "seed=0,1")
    assert code == 1
    extra = launcher.partition("_")[0]
    assert error.rstrip().endswith(f'pip install "se_lightning[{extra}]".')


def hide(prefix):
    """Return `find_spec` of an environment without a package, as Python's own behaves there."""
    found = importlib.util.find_spec

    def find_spec(name, *more):
        if name.startswith(f"{prefix}."):
            raise ModuleNotFoundError(f"No module named {prefix!r}")
        return found(name, *more)

    return find_spec


def test_no_launcher_is_needed_to_run(run_main, short, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", hide("hydra_plugins"))
    code, error = run_main(*short, "callbacks=none", "lr_scheduler=constant")
    assert code == 0, error


def test_a_job_that_requests_too_many_gpus_is_refused_before_any_job_starts(
    run_main, monkeypatch, tmp_path
):
    monkeypatch.setattr(sweeps, "visible_gpus", lambda: ["0", "1", "2"])
    code, error = run_main("-m", "jobs.parallel=2", "trainer.devices=1,4")
    assert code == 1
    assert "trainer.devices=4 on GPUs, but this machine has 3" in error
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("accelerator", "gpus"), [("gpu", ["0", "1", "2"]), ("cpu", [])])
def test_cores_are_shared_out_if_no_job_uses_a_gpu(monkeypatch, accelerator, gpus):
    monkeypatch.setattr(sweeps, "visible_gpus", lambda: ["0", "1", "2"])
    argv = ["-m", "jobs.parallel=2", "seed=0,1", f"trainer.accelerator={accelerator}"]
    sweep = sweeps.Sweep(Multirun.composed(Command.parse(argv)))
    assert sweep.gpus == gpus
    assert sweep.pool._on_gpus == bool(gpus)


def test_a_directory_in_use_by_a_multirun_is_refused(cli, tmp_path):
    sweep = tmp_path / "s"
    holder = "import sys, time; from se_lightning.cli.run.folder import RunFolder; "
    holder += "RunFolder(sys.argv[1]).claim(); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holder, str(sweep)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        done = cli("-m", "seed=0,1", f"hydra.sweep.dir={sweep}", check=False)
        other.kill()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"se_lightning: error: {sweep} is in use by another")
    assert not list(sweep.glob("*/"))


def test_submitit_composes_for_slurm(cli):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = ["hydra/launcher=submitit_slurm", "--cfg", "hydra", "-p", "hydra.launcher"]
    assert "submitit_launcher.SlurmLauncher" in cli(*arguments).stdout
