"""Real multiruns: killed, interrupted, failing, and with Hydra's other launchers."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def rows(sweep):
    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


# Without callbacks that are not tested here.
QUICK = ("logger=csv", "callbacks.excitation_curves=null", "callbacks.excitation_histogram=null",
         "callbacks.class_selectivity=null", "callbacks.gate_doctor=null")  # fmt: skip


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start ``python -m se_lightning`` in one process group, and list its remaining processes.

    They are found by a mark in their environment, even after their parent has exited.
    """
    mark = f"SWEEP_TEST_MARK={tmp_path}"
    monkeypatch.setenv(*mark.split("=", 1))
    processes = []

    def start(*arguments):
        with (tmp_path / "out").open("w") as out:
            command = [sys.executable, "-m", "se_lightning", *arguments]
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                process_group=0,
            )  # fmt: skip
        processes.append(process)
        return process

    def left():
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marked and state != "Z" and int(folder.name) != os.getpid():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    yield start, left
    for process in processes:
        process.kill()
        process.wait()


def until(condition, seconds=400):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def without_time(sweep):
    return [{k: v for k, v in row.items() if k != "wall time, s"} for row in rows(sweep)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_failing_rank_fails_only_its_job(cli, short, tmp_path, started):
    _, left = started
    (tmp_path / "fails.py").write_text(
        "import pytorch_lightning as pl\n"
        "class OnRank1(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, *_):\n"
        "        ratio = module.hparams['ratio']\n"
        "        if (trainer.global_rank, ratio) == (1, 8): raise KeyError('on rank 1')\n"
    )
    done = cli(
        "-m", "trainer.devices=1,2,1", "model.ratio=4,8", *short, *QUICK,
        "+callbacks.fails={_target_: fails.OnRank1}", check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    (sweep,) = (tmp_path / "multirun").iterdir()
    found = rows(sweep)
    assert [row["status"] for row in found] == ["completed"] * 3 + ["failed"] + ["completed"] * 2
    assert [row["world size"] for row in found] == ["1", "1", "2", "", "1", "1"]
    assert "1 of 6 jobs failed: 3 (" in done.stderr
    assert until(lambda: not left(), 30), left()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_multirun_leaves_no_process_and_resumes_to_the_same_table(
    short, tmp_path, started
):
    start, left = started
    jobs = ("-m", "seed=0,1", "trainer.devices=2,1", *short, *QUICK, "trainer.max_epochs=3")
    assert start(*jobs, "hydra.sweep.dir=whole").wait(timeout=800) == 0
    parent = start(*jobs, "hydra.sweep.dir=cut")
    cut = tmp_path / "cut"
    assert until(lambda: (cut / "2" / "checkpoints" / "last.ckpt").exists())
    assert len(left()) >= 3  # the parent, and two ranks
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not left(), 30), left()
    assert not (cut / "2" / "result.json").exists()
    before = (cut / "0" / "result.json").stat().st_mtime_ns
    assert start("-m", "jobs.resume=cut").wait(timeout=800) == 0, (tmp_path / "out").read_text()
    assert (cut / "0" / "result.json").stat().st_mtime_ns == before
    assert without_time(cut) == without_time(tmp_path / "whole")
    assert len(rows(cut)) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_multirun_interrupts_its_jobs(short, tmp_path, started, signum, code):
    start, left = started
    parent = start(
        "-m", "seed=0,1,2", "jobs.parallel=2", *short, *QUICK, "trainer.max_epochs=9999",
        "hydra.sweep.dir=s",
    )  # fmt: skip
    sweep = tmp_path / "s"
    assert until(lambda: all((sweep / n / "checkpoints/last.ckpt").exists() for n in "01"))
    os.killpg(parent.pid, signum)
    assert parent.wait(timeout=60) == code
    assert until(lambda: not left(), 30), left()
    output = (tmp_path / "out").read_text()
    assert "Traceback" not in output
    assert "jobs.resume=s" in output
    found = rows(sweep)
    assert [row["status"] for row in found] == ["interrupted"] * 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_hydras_other_launchers_write_the_summary_too(cli, short, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    done = cli(
        "-m", f"hydra/launcher={launcher}", "model.ratio=4,8,0", *short, "logger=csv",
        "hydra.sweep.dir=s", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 of 3 jobs failed: 2 (model: `ratio` (=0)" in done.stderr
    found = rows(tmp_path / "s")
    assert [row["status"] for row in found] == ["completed", "completed", "failed"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_hydras_other_launchers_die_with_the_multirun(short, tmp_path, started, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    start, left = started
    parent = start(
        "-m", f"hydra/launcher={launcher}", "seed=0,1", *short, *QUICK, "trainer.max_epochs=9999",
        "hydra.sweep.dir=s",
    )  # fmt: skip
    checkpoints = [tmp_path / "s" / job / "checkpoints" / "last.ckpt" for job in "01"]
    assert until(lambda: all(path.exists() for path in checkpoints), 120)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not left(), 10), left()
