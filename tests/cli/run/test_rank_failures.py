import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from se_lightning.cli.errors import Failure, RankError, explain, is_user_error
from se_lightning.cli.run import rank_failures as failures
from se_lightning.cli.run.folder import RunFolder

GLOO = "[/x/gloo/pair.cc:561] Connection closed by peer [::1]:1. This is typically caused. GLHF!"


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "PATIENCE", 0.5)
    monkeypatch.setattr(failures, "_watch", None)
    return tmp_path


def write_result(folder, **record):
    (folder / "result.json").write_text(json.dumps(record))


@pytest.fixture
def exited_ranks(run_dir, monkeypatch):
    """Make this process rank 0 of a run whose further ranks have run these programs."""

    def start(*codes):
        processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
        for process in processes:
            process.wait(20)
        monkeypatch.setattr(failures, "_watch", failures._Watch(processes, RunFolder(run_dir)))

    return start


def test_lightnings_watcher_is_replaced():
    """If this private name is gone, find where Lightning's launcher now watches the ranks."""
    from pytorch_lightning.strategies.launchers import subprocess_script

    assert callable(subprocess_script._launch_process_observer)
    launch = subprocess_script._SubprocessScriptLauncher.launch
    assert "_launch_process_observer" in launch.__code__.co_names
    failures.watch_ranks()
    assert subprocess_script._launch_process_observer is failures._start_watch


def test_a_single_process_reports_its_own_error(run_dir):
    write_result(run_dir, status="failed", error="of an earlier run", rank=1)
    error = RuntimeError(GLOO)
    assert failures.blame(error, RunFolder(run_dir)) is error


@pytest.mark.parametrize("error", [RuntimeError(GLOO), KeyError("a consequence")])
def test_the_error_of_another_rank_has_precedence_over_its_consequences(
    error, run_dir, exited_ranks
):
    exited_ranks("raise SystemExit(1)")
    write_result(run_dir, status="failed", error="ValueError: a", traceback="T\n", rank=1)
    first = failures.blame(error, RunFolder(run_dir))
    assert explain(first) == "rank 1: ValueError: a"
    assert Failure.of(first).traceback == "T\n"


def test_an_error_of_both_ranks_is_reported_as_that_of_rank_0(run_dir, exited_ranks):
    exited_ranks("raise SystemExit(1)")
    write_result(run_dir, status="failed", error="the same", rank=1)
    error = ValueError("the same")
    assert failures.blame(error, RunFolder(run_dir)) is error


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (
            ["import os; os.kill(os.getpid(), 9)"],
            "rank 1 was killed by signal 9, SIGKILL (probably the k",
        ),
        (["import os; os.kill(os.getpid(), 11)"], "rank 1 was killed by signal 11, SIGSEGV"),
        (["exit(1)", "import os; os.kill(os.getpid(), 9)"], "rank 2 was killed by signal 9"),
        (["exit(0)", "exit(3)"], "rank 2 ended with exit code 3; see its output above"),
    ],
)
def test_a_rank_without_a_message_is_described_by_its_exit(codes, words, run_dir, exited_ranks):
    exited_ranks(*codes)
    first = failures.blame(RuntimeError(GLOO), RunFolder(run_dir))
    assert explain(first).startswith(words)
    assert is_user_error(first)
    assert Failure.of(first).traceback == ""


def test_an_error_of_rank_0_is_reported_without_waiting(run_dir, exited_ranks):
    exited_ranks("exit(0)")
    error = KeyError("own")
    start = time.monotonic()
    assert failures.blame(error, RunFolder(run_dir)) is error
    assert time.monotonic() - start < 0.3


def test_an_unexplained_lost_connection_keeps_its_traceback(run_dir, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    try:
        raise RuntimeError(GLOO)
    except RuntimeError as error:
        first = failures.blame(error, RunFolder(run_dir))
    assert explain(first).startswith("the connection to another rank is lost; see that rank")
    assert "GLHF" not in explain(first)
    assert "raise RuntimeError(GLOO)" in Failure.of(first).traceback


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyError("a fault")])
def test_torchrun_receives_the_error_message(error, run_dir, monkeypatch, capsys):
    file = run_dir / "attempt_0" / "1" / "error.json"
    file.parent.mkdir(parents=True)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    failures.report(Failure.of(error))
    printed = capsys.readouterr().err
    read = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(file))
    assert read.message["extraInfo"]["py_callstack"] == printed.rstrip("\n")
    assert abs(read.timestamp - time.time()) < 5
    assert ("Traceback" in printed or "KeyError" in printed) == isinstance(error, KeyError)
    # So does rank 0, whose connection is lost.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(run_dir / "attempt_0" / "0" / "error.json"))
    first = failures.blame(RuntimeError(GLOO), RunFolder(run_dir))
    assert explain(first) == f"rank 1: {explain(error)}"


WATCHED = """
import subprocess, sys, time
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from se_lightning.cli.run import rank_failures as failures

failures.GRACE = 0.5
HydraConfig.get = staticmethod(lambda: OmegaConf.create(
    {"runtime": {"output_dir": sys.argv[1], "config_sources": []},
     "job": {"num": 0, "config_name": "train"}, "overrides": {"task": [], "hydra": []}}
))
ranks = [subprocess.Popen([sys.executable, "-c", code]) for code in sys.argv[2:]]
print(*(rank.pid for rank in ranks), flush=True)
failures._start_watch(ranks)
time.sleep(60)  # as in a collective that no other rank will enter
"""


def test_the_watch_ends_a_blocked_rank_0_and_the_other_ranks(tmp_path):
    wait = "import time; time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path), "import os; os.kill(os.getpid(), 9)", wait],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "se_lightning: error: rank 1 was killed by signal 9, SIGKILL" in done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    other = Path(f"/proc/{done.stdout.split()[1]}/cmdline")
    assert not (other.exists() and other.read_bytes())  # the command line of a zombie is empty


def test_a_rank_that_fails_while_exiting_fails_the_run(run_dir, exited_ranks):
    exited_ranks("exit(5)")
    with pytest.raises(RankError, match="rank 1 ended with exit code 5"):
        failures.part()
    exited_ranks("exit(0)")
    failures.part()
