"""Resuming a run with the command that started it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from se_lightning.cli.command import Command
from se_lightning.cli.run.resume import resumed


def arguments(*given):
    """Return the arguments that a command line is replaced with."""
    return resumed(Command.parse(given)).argv()


@pytest.fixture
def run_dir(tmp_path):
    """Create the folder of a run with its recorded command."""
    folder = tmp_path / 'run "1"'
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(
        """
hydra:
  job: {config_name: train, num: 3}
  overrides:
    task: [model.ratio=8, 'data.root=${nowhere}/a b', jobs.parallel=2]
    hydra: ['hydra.run.dir=x', hydra.verbose=true, hydra.mode=MULTIRUN]
  runtime:
    config_sources:
      - {provider: main, path: se_lightning.conf}
      - {provider: command-line, path: /mine}
"""
    )
    return folder


def test_resume_repeats_the_command_that_started_the_run(run_dir):
    name = '"' + str(run_dir).replace('"', '\\"') + '"'
    assert arguments(f"resume='{run_dir}'", "trainer.max_epochs=9") == [
        "--config-name", "train", "--config-dir", "/mine", "model.ratio=8",
        "data.root=${nowhere}/a b",
        "hydra.verbose=true", "hydra.job.num=3", "trainer.max_epochs=9", "trust=false",
        f"resume={name}",
        f"hydra.run.dir={name}", "hydra.mode=RUN", "hydra.output_subdir=null",
    ]  # fmt: skip


def test_further_ranks_keep_the_command_of_rank_0(run_dir, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert arguments(f"resume='{run_dir}'") == [f"resume='{run_dir}'"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["model.ratio=4"], "leave out model.ratio=4. To start a new run from"),
        (["model=se_resnet50"], "leave out model=se_resnet50"),
        (["data.batch_size=7"], "leave out data.batch_size=7"),
        (["seed=1"], "leave out seed=1"),
        (["trainer.precision=64-true"], "leave out trainer.precision=64-true"),
        (["trainer.accumulate_grad_batches=2"], "leave out trainer.accumulate_grad_batches=2"),
        (["callbacks.last_checkpoint=null"], "leave out callbacks.last_checkpoint=null"),
        (["~optimizer.lr"], "leave out ~optimizer.lr"),
        (["hydra.run.dir=x"], "leave out hydra.run.dir=x"),
        (["hydra.mode=MULTIRUN"], "leave out hydra.mode=MULTIRUN"),
        (["-m"], "leave out -m"),
        (["--config-name=x"], "leave out --config-name=x"),
    ],
)
def test_a_resumed_run_cannot_be_changed(run_dir, run_main, more, words):
    code, err = run_main(f"resume='{run_dir}'", *more)
    assert code == 1
    assert words in err
    assert "Traceback" not in err


def test_only_an_interrupted_run_is_resumed(run_dir, run_main, tmp_path):
    for name in ("nothing", "empty", "sweep", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "nothing").rmdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    (tmp_path / "damaged" / ".hydra").mkdir()
    (tmp_path / "damaged" / ".hydra" / "hydra.yaml").write_text("hydra: [\n")
    (run_dir / "result.json").write_text('{"status": "completed"}')
    with pytest.raises(ValueError, match="is complete; trainer"):
        arguments(f"resume='{run_dir}'")
    for name, words in {
        "nothing": "is not a folder",
        "empty": "is not the folder of a run: ",
        "sweep": "is a multirun: continue it with `-m jobs.resume=",
        "damaged": "can't be resumed: its .hydra/ or result.json is damaged",
    }.items():
        code, err = run_main(f"resume='{tmp_path / name}'")
        assert (code, words in err) == (1, True), err


def test_slurm_names_a_run_after_its_job_and_resumes_it(tmp_path, run_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert arguments("model.ratio=8") == ["model.ratio=8"]
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    folder = Path(arguments("model.ratio=8")[1].removeprefix("hydra.run.dir=").strip('"'))
    assert folder.parent == tmp_path / "outputs"
    assert folder.name.startswith("slurm-77-")
    folder.parent.mkdir()
    run_dir.rename(folder)
    # The same command a second time in one job gets a time stamp.
    assert arguments("model.ratio=8") == ["model.ratio=8"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert f'resume="{folder}"' in arguments("model.ratio=8")
    (folder / "result.json").write_text('{"status": "completed"}')
    with pytest.raises(SystemExit) as done:
        arguments("model.ratio=8")
    assert done.value.code == 0
    assert folder.name not in arguments("model.ratio=4")[1]


STOP = """
import os, signal
import pytorch_lightning as pl

class Stop(pl.Callback):
    def __init__(self, batch, number):
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        at = trainer.fit_loop.epoch_loop.total_batch_idx
        first = "RESUMED" not in os.environ
        if at == self.batch and first and trainer.is_global_zero:
            os.kill(os.getpid(), self.number)
"""
SMALL = (
    "data=fake data.size=60 data.image_size=16 trainer.max_epochs=2 logger=csv model.stem=cifar "
    "model.depth=[1,1,1] model.widths=[8,16,16] trainer.accelerator=cpu callbacks=checkpoint "
    "trainer.log_every_n_steps=1"
)


def stopping(batch: int, number: int) -> list[str]:
    node = "+callbacks.stop"
    return [f"{node}._target_=stop.Stop", f"{node}.batch={batch}", f"{node}.number={int(number)}"]


def outcome(folder: Path):
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    weights = {name: tensor.tolist() for name, tensor in last["state_dict"].items()}
    return weights, (folder / "metrics.csv").read_bytes(), result["status"], result["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_requeued_by_slurm_ends_like_an_uninterrupted_one(cli, tmp_path, devices):
    (tmp_path / "stop.py").write_text(STOP)
    stub = tmp_path / "bin" / "scontrol"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    stub.chmod(0o755)
    path = {"PYTHONPATH": str(tmp_path), "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    command = [*SMALL.split(), f"trainer.devices={devices}"]
    cli(*command, *stopping(-1, 0), "hydra.run.dir=whole", env=path)
    slurm = path | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}
    if devices == 1:  # Lightning takes its ranks from SLURM's tasks
        slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    else:
        slurm.pop("SLURM_NTASKS")
    command += stopping(4, signal.SIGUSR1)
    cut = cli(*command, env=slurm, check=False)
    assert cut.returncode == 128 + signal.SIGUSR1, cut.stderr[-2000:]
    assert "se_lightning: SIGUSR1: saved at step 5; continue with resume=" in cut.stderr
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    cli(*command, env=slurm | {"SLURM_RESTART_COUNT": "1"})
    assert outcome(folder) == outcome(tmp_path / "whole")
    done = cli(*command, env=slurm | {"SLURM_RESTART_COUNT": "2"})
    assert done.stdout == f"{folder} is complete.\n"


@pytest.mark.slow
def test_only_one_of_two_simultaneous_runs_gets_the_directory(tmp_path):
    command = [sys.executable, "-m", "se_lightning", *SMALL.split(), "hydra.run.dir=run"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    (refused,) = (errors[at] for at, process in enumerate(both) if process.returncode)
    assert "is in use by another run (" in refused
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_run_in_progress_is_not_resumed(tmp_path):
    run = [sys.executable, "-m", "se_lightning"]
    first = subprocess.Popen([*run, *SMALL.split(), "hydra.run.dir=run"], cwd=tmp_path)
    while not (tmp_path / "run" / ".hydra" / "hydra.yaml").exists():
        time.sleep(0.05)
    second = subprocess.run(
        [*run, "resume=run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "is in use by another run (process" in second.stderr
    assert first.wait(200) == 0


@pytest.mark.slow
def test_a_torchrun_run_resumes_under_torchrun(cli, tmp_path):
    """Further ranks write elsewhere but read the checkpoint in the run's directory."""
    (tmp_path / "stop.py").write_text(STOP)
    path = {"PYTHONPATH": str(tmp_path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start = [*torchrun, "--nproc_per_node=2", "-m", "se_lightning"]
    command = [*SMALL.split(), "trainer.devices=2", "checkpoint.every_n_steps=2"]
    cli(*command, *stopping(-1, 0), "hydra.run.dir=whole", env=path)
    kill = stopping(5, signal.SIGKILL)
    cut = cli(*command, *kill, "hydra.run.dir=cut", command=start, env=path, check=False)
    assert cut.returncode != 0
    assert not (tmp_path / "cut" / "result.json").exists()
    cli("resume=cut", command=start, env=path | {"RESUMED": "1"})
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_run_that_got_somewhere_never_starts_again_silently(run_main, tmp_path, short):
    options = ("trainer.max_epochs=2", "lr_scheduler=constant", "hydra.run.dir=run")
    code, error = run_main(*short, *options)
    assert code == 0, error
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.suffix != ".log"}
    for hidden in (None, "metrics.csv"):  # without it, best.ckpt shows the epochs
        if hidden:
            before.pop(tmp_path / "run" / hidden)
            (tmp_path / "run" / hidden).unlink()
        code, error = run_main("resume=run", more=())
        assert code == 1
        assert "last.ckpt is missing, though the run completed" in error
        assert {path: path.read_bytes() for path in before} == before
