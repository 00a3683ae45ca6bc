"""Child processes exit with their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from se_lightning import ranks
from se_lightning.cli import process


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is specific to Linux")
@pytest.mark.parametrize("variable", [ranks.CHILD, "LOCAL_RANK"])
def test_a_child_process_exits_with_its_parent(variable):
    child = f"import os; os.environ['{variable}'] = '1'; from se_lightning.cli import process; "
    child += (
        "process.die_with_parent(); print(os.getpid(), flush=True); import time; time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(started.stdout.readline())
    started.send_signal(signal.SIGKILL)
    started.wait()
    started.stdout.close()
    for _ in range(50):
        if process._is_gone(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent by 5 s")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is specific to Linux")
def test_a_child_process_exits_if_its_parent_died_first():
    """The parent is killed between the start of the child and its prctl."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(1)\n"
    child += "from se_lightning.cli import process; process.die_with_parent()\n"
    child += "print('alive', flush=True)"
    parent = f"""
import os, subprocess, sys, time
from se_lightning.cli import process
process.die_with_parent()
os.environ["LOCAL_RANK"] = "1"
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()[1:] == []


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is specific to Linux")
@pytest.mark.parametrize("starter", ["none", "parent", "grandparent"])
def test_a_process_continues_while_its_starter_lives(starter):
    """Also with another process in between, such as a joblib worker."""
    pids = {"none": "", "parent": str(os.getpid()), "grandparent": str(os.getppid())}
    code = "from se_lightning.cli import process; process.die_with_parent(); print('alive')"
    environment = {**os.environ, "LOCAL_RANK": "1", process._STARTER: pids[starter]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
