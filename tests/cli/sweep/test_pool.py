"""The process pool of a multirun, with small commands instead of training runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.sweep import pool as jobs
from se_lightning.cli.sweep.pool import Job, Pool, Stopped, gpus_needed

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores are handed out on Linux")
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
two_cores = pytest.mark.skipif(CORES < 2, reason="needs two cores")

# Writes a result with its start, end, GPUs and cores.
REPORT = """
import json, os, pathlib, sys, time
start = time.time()
time.sleep(float(sys.argv[2]))
folder = pathlib.Path(sys.argv[1])
result = {"status": "completed", "job": int(folder.name), "overrides": [], "score": 1.0,
          "start": start, "end": time.time(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
          "cores": sorted(os.sched_getaffinity(0))}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def job(tmp_path):
    def make(number, command=None, *, seconds=0.5, gpus=0):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        command = command or [sys.executable, "-c", REPORT, str(run_dir), str(seconds)]
        return Job(number, RunFolder(run_dir), command, dict(os.environ), ["a=1"], gpus)

    return make


def is_gone(pid: int) -> bool:
    """Return whether a process exits within a second, the time that a signal may take."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def most_at_once(results) -> int:
    return max(
        sum(other["start"] <= one["start"] < other["end"] for other in results) for one in results
    )


@two_cores
def test_parallel_jobs_are_limited_and_share_no_core(job):
    pool = Pool(2)
    started = time.monotonic()
    for number in range(4):
        pool.start(job(number))
    assert time.monotonic() - started > 0.5  # the third waited for one of the first two
    pool.wait()
    results = [pool.results[number] for number in range(4)]
    assert most_at_once(results) == 2
    for one in results:
        assert len(one["cores"]) == CORES // 2
        for other in results:
            if other is not one and other["start"] <= one["start"] < other["end"]:
                assert not set(one["cores"]) & set(other["cores"])


def test_a_sequential_job_has_all_cores_and_gpus(job):
    pool = Pool()
    for number in range(2):
        pool.start(job(number, seconds=0.2))
    pool.wait()
    results = [pool.results[number] for number in range(2)]
    assert most_at_once(results) == 1
    assert results[0]["cores"] == sorted(os.sched_getaffinity(0))
    assert results[0]["gpus"] == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_jobs_share_no_gpu_and_a_large_job_waits_for_enough(job):
    pool = Pool(4, gpus=["4", "5", "6", "GPU-a"])
    for number, gpus in enumerate((1, 2, 3, 4, 1, 0)):
        pool.start(job(number, gpus=gpus))
    pool.wait()
    results = [pool.results[number] for number in range(6)]
    taken = [set(filter(None, result["gpus"].split(","))) for result in results]
    assert [len(ids) for ids in taken] == [1, 2, 3, 4, 1, 0]
    assert set().union(*taken) == {"4", "5", "6", "GPU-a"}
    assert most_at_once(results) > 1
    for one, ids in zip(results, taken, strict=True):
        for other, other_ids in zip(results, taken, strict=True):
            if other is not one and other["start"] <= one["start"] < other["end"]:
                assert not ids & other_ids


@pytest.mark.parametrize(
    ("accelerator", "devices", "count"),
    [("auto", 2, 2), ("gpu", "3", 3), ("cuda", "auto", 4), ("auto", -1, 4), ("cpu", 8, 0)],
)
def test_a_job_gets_the_gpus_that_its_trainer_requests(accelerator, devices, count):
    trainer = OmegaConf.create({"accelerator": accelerator, "devices": devices})
    assert gpus_needed(trainer, list("0123")) == count
    assert gpus_needed(trainer, []) == 0


@pytest.mark.parametrize(
    ("devices", "message"), [(5, "but this machine has 4"), ([0, 1], "a number of GPUs")]
)
def test_a_job_that_requests_unavailable_gpus_is_refused(devices, message):
    trainer = OmegaConf.create({"accelerator": "auto", "devices": devices})
    with pytest.raises(ValueError, match=message):
        gpus_needed(trainer, list("0123"))


@linux
def test_more_jobs_than_cores_are_refused():
    with pytest.raises(
        ValueError, match=rf"`jobs.parallel` \(=9999\) is more than the {CORES} available"
    ):
        Pool(9999)


def test_gpus_have_their_names_in_the_environment(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert jobs.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-b")
    assert jobs.visible_gpus() == ["6", "GPU-b"]


def test_a_killed_job_has_a_result(job, tmp_path):
    pool = Pool()
    pool.start(job(3, ["/bin/sh", "-c", "kill -9 $$"]))
    pool.wait()
    written = json.loads((tmp_path / "3" / "result.json").read_text())
    assert pool.results[3] == written
    assert written["status"] == "failed"
    assert written["error"] == "the process ended with exit code -9"
    assert (written["job"], written["overrides"]) == (3, ["a=1"])


SLEEPER = ["/bin/sh", "-c", "sleep 100 & echo $! > $0/pid; sleep 100"]


def sleeper(job, number):
    made = job(number)
    made.command[:] = [*SLEEPER, str(made.folder.path)]
    return made


@two_cores
def test_fail_fast_stops_the_other_jobs_and_starts_no_more(job, tmp_path):
    pool = Pool(2, fail_fast=True)
    pool.start(sleeper(job, 0))
    pool.start(job(1, ["/bin/sh", "-c", "sleep 0.3; exit 3"]))
    with pytest.raises(Stopped):
        pool.start(job(2))
    assert [pool.results[n]["status"] for n in sorted(pool.results)] == ["interrupted", "failed"]
    assert sorted(pool.results) == [0, 1]
    assert is_gone(int((tmp_path / "0" / "pid").read_text()))


@two_cores
def test_without_fail_fast_a_failure_stops_nothing(job):
    pool = Pool(2)
    for number in range(3):
        pool.start(job(number, ["/bin/sh", "-c", "exit 3"]))
    pool.wait()
    assert [pool.results[number]["status"] for number in range(3)] == ["failed"] * 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_can_save_and_its_children_exit_too(job, tmp_path, signum):
    name = "TERM" if signum == signal.SIGTERM else "INT"
    script = (
        f"trap 'echo saved > $0/saved; exit 143' {name}; sleep 100 & echo $! > $0/pid; "
        "touch $0/ready; while true; do sleep 0.1; done"
    )
    made = job(0)
    made.command[:] = ["/bin/sh", "-c", script, str(made.folder.path)]
    pool = Pool()
    pool.start(made)
    while not (tmp_path / "0" / "ready").exists():
        time.sleep(0.01)
    pool.stop(signum)
    assert (tmp_path / "0" / "saved").exists()
    assert is_gone(int((tmp_path / "0" / "pid").read_text()))
    assert pool.results[0]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("signum", "reaches_ranks"), [(signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_ctrl_c_reaches_a_jobs_ranks_and_sigterm_only_the_job(job, tmp_path, signum, reaches_ranks):
    rank = "trap 'touch $0/heard; exit' INT TERM; touch $0/ready; while true; do sleep 0.01; done"
    code = f"import subprocess, sys; subprocess.run(['/bin/sh', '-c', {rank!r}, sys.argv[1]])"
    pool = Pool()
    pool.start(job(0, [sys.executable, "-c", code, str(tmp_path / "0")]))
    while not (tmp_path / "0" / "ready").exists():
        time.sleep(0.01)
    pool.stop(signum)
    assert (tmp_path / "0" / "heard").exists() == reaches_ranks


def test_a_job_that_ignores_sigterm_is_killed(job, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    pool = Pool()
    made = job(0)
    deaf = "trap '' TERM; touch $0/ready; while true; do sleep 0.1; done"
    made.command[:] = ["/bin/sh", "-c", deaf, str(made.folder.path)]
    pool.start(made)
    while not (tmp_path / "0" / "ready").exists():
        time.sleep(0.01)
    pool.stop()
    assert pool.results[0]["error"] == "the process ended with exit code -9"


def test_a_second_ctrl_c_ends_the_wait(job, tmp_path):
    pool = Pool()
    made = job(0)
    deaf = "trap '' TERM INT; touch $0/ready; while true; do sleep 0.1; done"
    made.command[:] = ["/bin/sh", "-c", deaf, str(made.folder.path)]
    pool.start(made)
    while not (tmp_path / "0" / "ready").exists():
        time.sleep(0.01)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.stop(signal.SIGINT)
    assert time.monotonic() - started < 5
    assert pool.results[0] == {
        "status": "interrupted", "kind": "interrupted", "job": 0, "overrides": ["a=1"],
        "error": "the process ended with exit code -9",
    }  # fmt: skip


@two_cores
def test_parallel_jobs_write_their_output_to_separate_files(job, tmp_path, capfd):
    pool = Pool(2)
    for number in range(2):
        command = ["/bin/sh", "-c", f"echo out {number}; echo err >&2; exit 1"]
        pool.start(job(number, command))
    pool.wait()
    for number in range(2):
        assert (tmp_path / f"{number}/console.txt").read_text() == f"out {number}\nerr\n"
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.endswith(": failed") for line in lines) == 2
    assert sum(": started on core" in line for line in lines) == 2


def test_each_job_has_its_own_process_group(job, tmp_path):
    """A terminal's Ctrl-C then reaches only the parent, which forwards it once."""
    pool = Pool()
    code = "import os, sys; open(sys.argv[1] + '/ids', 'w').write(f'{os.getpid()} {os.getpgrp()}')"
    made = job(0, [sys.executable, "-c", code, str(tmp_path / "0")])
    pool.start(made)
    pool.wait()
    pid, group = (tmp_path / "0" / "ids").read_text().split()
    assert pid == group
    assert subprocess.run(["kill", "-0", pid], capture_output=True, check=False).returncode
