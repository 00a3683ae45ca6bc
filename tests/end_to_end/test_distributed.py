"""Runs with several ranks: every launcher trains the same network; a dying rank ends the run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

LIMIT = 30  # seconds from the death of a rank to the end of the job
# Fails on one rank, in one hook, in one way, and records the time.
BREAKER = """
import os, pathlib, signal, time
import torch
from pytorch_lightning import Callback

class Breaker(Callback):
    def __init__(self, rank, hook, way, others="go"):
        self.rank, self.way, self.others = rank, way, others
        if hook == "init":
            self.break_off()
        elif hook == "write":
            torch.save = self.write_half
        else:
            setattr(self, hook, self.break_off)

    def write_half(self, obj, file, *_, **__):
        file.write(b"half") if hasattr(file, "write") else pathlib.Path(file).write_bytes(b"half")
        self.break_off()

    def break_off(self, *_, **__):
        if int(os.environ.get("LOCAL_RANK", 0)) != self.rank:
            if self.others == "wait":  # as in an NCCL collective, which a dead peer does not end
                time.sleep(1000)
            return
        if self.way == "late mistake":
            time.sleep(10)  # the other rank waits for this one in torch's code meanwhile
        pathlib.Path(os.environ["BROKE_AT"]).write_text(str(time.time()))
        if self.way == "raise":
            raise KeyError(f"rank {self.rank} breaks")
        if self.way in ("mistake", "late mistake"):
            raise ValueError(f"rank {self.rank} is mistaken.")
        if self.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MODULE = [sys.executable, "-m", "se_lightning"]


def processes(folder: Path) -> list[int]:
    """Return the ids of the processes that have the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has exited meanwhile
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def end_of_all(folder: Path, limit: float) -> float | None:
    """Wait until all processes have exited and return the time; kill those that take too long."""
    end = time.time() + limit
    while time.time() < end:
        if not processes(folder):
            return time.time()
        time.sleep(0.1)
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)
    return None


@pytest.fixture
def broken(tmp_path, short):
    """Start a run of two ranks that fails; return it and the file that records when."""
    (tmp_path / "breaker.py").write_text(BREAKER)
    broke_at = tmp_path / "broke_at"

    def start(rank, hook, way, others="go", *, command=MODULE, more=()):
        breaker = f"_target_: breaker.Breaker, rank: {rank}, hook: {hook}, way: {way}"
        arguments = ["trainer.devices=2", *short, "logger=csv", "callbacks=checkpoint", *more]
        arguments += [f"+callbacks.breaker={{{breaker}, others: {others}}}"]
        if "-m" not in more:
            arguments.append(f"hydra.run.dir={tmp_path}/run")
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            started = subprocess.Popen(
                [*command, *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path, "BROKE_AT": str(broke_at)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        return started, broke_at

    return start


def wait_for(path: Path, started: subprocess.Popen) -> float:
    """Wait for a file with a time and return the time."""
    while not (path.exists() and path.read_text()):
        assert started.poll() is None, "the run ended before it broke"
        time.sleep(0.05)
    return float(path.read_text())


def check_end(tmp_path, broken, *arguments, last, **options):
    started, broke_at = broken(*arguments, **options)
    since = wait_for(broke_at, started)
    code = started.wait(120)
    ended = end_of_all(tmp_path, LIMIT)
    assert ended is not None
    print(f"MEASURED {arguments}: {ended - since:.1f} s")
    assert ended - since <= LIMIT
    error = (tmp_path / "err").read_text().rstrip()
    if code != -signal.SIGKILL:
        assert code == 1
        assert re.search(last + r"$", error), error[-2000:]
    return code, error


KEY_ERROR = r"KeyError: 'rank {0} breaks'\nse_lightning: error: {1}KeyError: 'rank {0} breaks'"
MISTAKE = r"se_lightning: error: rank 1: rank 1 is mistaken\."
KILLED = r"se_lightning: error: rank 1 was killed by signal 9, SIGKILL \(probably the kernel.*"


def test_the_error_of_the_failed_rank_is_printed_last(tmp_path, broken, result):
    last = KEY_ERROR.format(1, "rank 1: ")
    code, error = check_end(tmp_path, broken, 1, "on_train_batch_start", "raise", last=last)
    assert code == 1
    assert error.count("Traceback") == 1
    report = result(tmp_path)
    assert (report["status"], report["rank"]) == ("failed", 1)
    assert report["error"] == "KeyError: 'rank 1 breaks'"
    assert "break_off" in report["traceback"]


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_validation_start", "on_save_checkpoint", "on_test_end"])
@pytest.mark.parametrize("way", ["raise", "kill"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_job(rank, way, hook, tmp_path, broken, result):
    words = KEY_ERROR.format(rank, "rank 1: " if rank else "")
    last = KILLED if way == "kill" else words
    code, _ = check_end(tmp_path, broken, rank, hook, way, last=last)
    if code == 1:  # rank 0 was not killed and reports the failure
        assert result(tmp_path)["status"] == "failed"
    assert (code == 1) == (rank == 1 or way == "raise")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        ((1, "init", "mistake"), "se_lightning: error: rank 1: callbacks.breaker: rank 1 is .*"),
        ((1, "init", "kill"), KILLED),
        ((1, "on_train_batch_start", "mistake"), MISTAKE),
        ((1, "on_train_batch_start", "raise", "wait"), KEY_ERROR.format(1, "rank 1: ")),
        ((1, "on_train_batch_start", "kill", "wait"), KILLED),
        ((0, "write", "raise"), KEY_ERROR.format(0, "")),
        ((0, "write", "kill"), ""),
        ((0, "on_train_batch_start", "raise", "wait"), KEY_ERROR.format(0, "")),
        ((0, "on_train_batch_start", "kill", "wait"), ""),
    ],
    ids=str,
)
def test_a_failure_at_any_stage_ends_the_job_even_if_a_rank_waits(
    arguments, last, tmp_path, broken
):
    check_end(tmp_path, broken, *arguments, last=last)


@pytest.mark.slow
def test_a_rank_that_cannot_even_start_ends_the_job(tmp_path, broken):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, time\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        "    pathlib.Path(os.environ['BROKE_AT']).write_text(str(time.time()))\n"
        "    os._exit(9)\n"
    )
    last = "se_lightning: error: rank 1 ended with exit code 9; see its output above"
    check_end(tmp_path, broken, 1, "teardown", "raise", last=last)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("hook", ["init", "on_train_batch_start", "write"])
@pytest.mark.parametrize("starter", ["lightning", "multirun", "torchrun"])
def test_no_process_outlives_a_killed_launcher(starter, hook, rank, tmp_path, broken):
    """Before the rendezvous, in training and in a save, with the other rank waiting forever."""
    if hook == "write" and rank == 1:
        pytest.skip("rank 1 writes no checkpoint")
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", "se_lightning"]
    started, broke_at = broken(
        *(rank, hook, "wait", "go"),
        command=command if starter == "torchrun" else MODULE,
        more=("-m", f"hydra.sweep.dir={tmp_path}/sweep") if starter == "multirun" else (),
    )
    wait_for(broke_at, started)
    started.kill()
    started.wait()
    since = time.time()
    ended = end_of_all(tmp_path, LIMIT)
    assert ended is not None
    print(f"MEASURED orphans of {starter}, {hook}, rank {rank}: {ended - since:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((1, "on_train_batch_start", "raise"), "se_lightning: error: KeyError: 'rank 1 breaks'"),
        ((0, "on_validation_start", "mistake"), "se_lightning: error: rank 0 is mistaken."),
        ((1, "on_train_batch_start", "kill"), "Signal 9 (SIGKILL) received by PID "),
        ((1, "init", "mistake"), "se_lightning: error: callbacks.breaker: rank 1 is mistaken."),
        (
            (1, "init", "late mistake"),
            "se_lightning: error: callbacks.breaker: rank 1 is mistaken.",
        ),
    ],
    ids=str,
)
def test_torchrun_names_the_root_cause_last(arguments, cause, tmp_path, broken):
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", "se_lightning"]
    _, error = check_end(tmp_path, broken, *arguments, last="=" * 60, command=command)
    root = error.rpartition("Root Cause (first observed failure)")[2]
    assert f"rank      : {arguments[0]} " in root
    assert cause in root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def run_all(commands: list[tuple[list[str], dict[str, str]]], folder: Path) -> None:
    """Run commands at the same time, each with its own environment."""
    running = [
        subprocess.Popen(command, cwd=folder, env={**os.environ, **more}, stdin=subprocess.DEVNULL)
        for command, more in commands
    ]
    try:
        assert [process.wait(250) for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_every_launcher_trains_the_same_network(ranks_per_node, tmp_path, short, result):
    """Two torchrun agents on the loopback interface act as two nodes."""
    words = [*short, "logger=csv", "callbacks=checkpoint", "trainer.limit_train_batches=4"]
    ranks = 2 * ranks_per_node
    port = str(free_port())
    agent = [*TORCHRUN, "--nnodes=2", f"--nproc_per_node={ranks_per_node}"]
    agent += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    nodes = ["trainer.num_nodes=2", f"trainer.devices={ranks_per_node}", "hydra.run.dir=nodes"]
    run_all(
        [
            ([*agent, f"--node_rank={node}", "-m", "se_lightning", *words, *nodes], {})
            for node in (0, 1)
        ],
        tmp_path,
    )
    slurm = {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NNODES": "1"}
    slurm |= {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "x", "SLURM_NODELIST": "127.0.0.1"}
    slurm |= {"SLURM_NODEID": "0", "MASTER_PORT": str(free_port())}
    one = [*MODULE, *words, f"trainer.devices={ranks}"]
    tasks = [{**slurm, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(ranks)]
    run_all([([*one, "hydra.run.dir=srun"], task) for task in tasks], tmp_path)
    run_all([([*one, "hydra.run.dir=one"], {})], tmp_path)

    expected = weights(tmp_path / "one")
    for way in ("nodes", "srun"):
        found = weights(tmp_path / way)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    reports = [result(tmp_path / way) for way in ("one", "nodes", "srun")]
    assert [report["world_size"] for report in reports] == [ranks] * 3
    assert reports[0]["metrics"] == reports[1]["metrics"] == reports[2]["metrics"]
    assert len(list(tmp_path.rglob("result.json"))) == 3
    assert not (tmp_path / "outputs").exists()
