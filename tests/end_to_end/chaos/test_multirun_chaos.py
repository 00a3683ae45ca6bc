"""Multiruns that are killed, moved and resumed have the table of uninterrupted ones."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
COMMON = (
    "data=fake data.size=240 data.image_size=16 model.depth=[1,1,1] model.widths=[8,16,16] "
    "model.stem=cifar trainer.max_epochs=3 trainer.accelerator=cpu logger=csv "
    "checkpoint.every_n_steps=2 callbacks.gate_doctor=null callbacks.excitation_curves=null "
    "callbacks.class_selectivity=null callbacks.excitation_histogram=null"
)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    with (folder / "console").open("a") as console:
        return subprocess.Popen(
            [sys.executable, "-m", "se_lightning", "-m", *arguments],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )


def finish(folder: Path, *arguments: str) -> None:
    code = start(folder, *arguments).wait(timeout=280)
    assert code == 0, (folder / "console").read_text()[-3000:]


def processes(text: str) -> list[int]:
    """Return the other processes whose command line contains a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def outcome(sweep: Path) -> tuple:
    """Return the table of a multirun without its times, and the weights of all jobs."""
    with (sweep / "summary.csv").open() as file:
        table = [{**row, "wall time, s": ""} for row in csv.DictReader(file)]
    weights = {}
    for path in sweep.glob("*/checkpoints/*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        name = str(path.relative_to(sweep))
        weights |= {f"{name} {key}": value.tolist() for key, value in state.items()}
    return table, weights


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("options", ["seed=0,1,2", "jobs.trials=3 model.ratio=choice(2,4,8)"])
def test_a_killed_and_moved_multirun_ends_with_the_same_table(tmp_path, options):
    """A job is killed, then the multirun twice, each time in another place."""
    (tmp_path / "started").mkdir()
    started = tmp_path / "started"
    command = [*COMMON.split(), *options.split()]
    finish(started, *command, f"hydra.sweep.dir={tmp_path}/whole")

    cut = tmp_path / "cut"
    parent = start(started, *command, f"hydra.sweep.dir={cut}")
    killed_job = "trials" not in options  # a search counts a killed job as a failed trial
    for job in range(2 if killed_job else 1):
        until((cut / str(job) / "checkpoints" / "last.ckpt").exists)
        if job == 0 and killed_job:
            (process,) = processes(f'hydra.run.dir="{cut}/0"')
            kill(process)
    for place in ("moved", "moved again"):
        kill(parent.pid)
        parent.wait()
        until(lambda: not processes(str(cut)))  # noqa: B023 - called at once
        cut = cut.rename(tmp_path / place)
        if place == "moved":
            ended = len(list(cut.glob("*/result.json")))
            parent = start(started, f"jobs.resume={cut}")
            until(lambda: len(list(cut.glob("*/result.json"))) != ended)  # noqa: B023
    finish(started, f"jobs.resume={cut}")

    assert not (tmp_path / "cut").exists()
    assert not (tmp_path / "moved").exists()
    assert outcome(cut) == outcome(tmp_path / "whole")
    assert len(outcome(cut)[0]) == 3
