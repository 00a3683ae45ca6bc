import os
import signal
import subprocess
import sys
import time

import pytest

from se_lightning import ranks


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "1"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, 3),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, None),
        ({"LOCAL_RANK": "1"}, None),
    ],
)
def test_ranks_from_outside_are_known(environment, rank, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.external_rank() == rank


@pytest.mark.parametrize(
    ("environment", "further"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),  # srun sets no LOCAL_RANK
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "0"}, True),  # a second node
    ],
)
def test_further_ranks_are_known_whoever_started_them(environment, further, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_further_rank() == further


def test_further_external_ranks_write_nowhere_that_stays(monkeypatch):
    argv = ["x"]
    ranks.leave_writing_to_rank_0(argv)
    assert argv == ["x"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    code = "import sys; from se_lightning import ranks; ranks.leave_writing_to_rank_0(sys.argv); "
    code += "import pathlib; folder = sys.argv[1].split('=')[1]; "
    code += "assert pathlib.Path(folder).is_dir(); print(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    run, sweep, subdir = done.stdout.split()
    assert run.removeprefix("hydra.run.dir=") == sweep.removeprefix("hydra.sweep.dir=")
    assert subdir == "hydra.output_subdir=null"
    assert not os.path.exists(run.removeprefix("hydra.run.dir="))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("variable", [ranks.CHILD, "LOCAL_RANK"])
def test_a_process_of_ours_ends_with_its_parent(variable):
    child = f"import os; os.environ['{variable}'] = '1'; from se_lightning import ranks; "
    child += "ranks.die_with_parent(); print(os.getpid(), flush=True); import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(started.stdout.readline())
    started.send_signal(signal.SIGKILL)
    started.wait()
    started.stdout.close()
    for _ in range(50):
        if ranks._is_gone(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent by 5 s")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_whose_parent_died_before_it_could_ask_ends_too():
    """The parent is killed between the start of the child and its prctl."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(1)\n"
    child += "from se_lightning import ranks; ranks.die_with_parent()\n"
    child += "print('alive', flush=True)"
    parent = f"""
import os, subprocess, sys, time
from se_lightning import ranks
ranks.die_with_parent()
os.environ["LOCAL_RANK"] = "1"
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()[1:] == []


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("starter", ["none", "parent", "grandparent"])
def test_a_process_whose_starter_lives_goes_on(starter):
    """Also where another process stands between, as joblib's workers do."""
    pids = {"none": "", "parent": str(os.getpid()), "grandparent": str(os.getppid())}
    code = "from se_lightning import ranks; ranks.die_with_parent(); print('alive')"
    environment = {**os.environ, "LOCAL_RANK": "1", ranks._STARTER: pids[starter]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
