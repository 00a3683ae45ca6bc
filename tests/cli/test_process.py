"""Child processes exit with their parent."""

import os
import signal
import socket
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


@pytest.mark.skipif(sys.platform != "linux", reason="specific to Linux")
@pytest.mark.parametrize("function", ["die_with_parent", "die_with_multirun"])
@pytest.mark.parametrize("place", ["another-host ", "{here} 7"])
def test_a_process_outlives_a_starter_elsewhere(function, place):
    """On another machine, or outside of this SLURM job, the process ids have no meaning."""
    code = f"from se_lightning.cli import process; process.{function}(); import time; "
    code += "time.sleep(1); print('alive')"
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    starter = f"{gone.pid} {place.format(here=socket.gethostname())}"
    environment = {**os.environ, "LOCAL_RANK": "1", process._STARTER: starter}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"


@pytest.mark.skipif(sys.platform != "linux", reason="specific to Linux")
def test_a_launchers_worker_and_its_jobs_die_with_the_multirun():
    """The worker is not a child of the multirun, and waits for its job."""
    job = "from se_lightning.cli import process; process.die_with_parent(); import os, time; "
    job += "print(os.getpid(), flush=True); time.sleep(60)"
    worker = f"""
import os, subprocess, sys
from se_lightning.cli import process
process.die_with_multirun()
process.die_with_multirun()
print(os.getpid(), flush=True)
os.environ[{ranks.CHILD!r}] = "1"
subprocess.run([sys.executable, "-c", {job!r}])
"""
    controller = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    multirun = f"""
import subprocess, sys, time
from se_lightning.cli import process
process.die_with_parent()
subprocess.Popen([sys.executable, "-c", {controller!r}], start_new_session=True)
time.sleep(60)
"""
    started = subprocess.Popen([sys.executable, "-c", multirun], stdout=subprocess.PIPE, text=True)
    pids = [int(started.stdout.readline()) for _ in range(2)]
    assert not any(map(process._is_gone, pids))
    started.send_signal(signal.SIGKILL)
    started.wait()
    started.stdout.close()
    end = time.monotonic() + 5
    while not all(map(process._is_gone, pids)):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is specific to Linux")
@pytest.mark.parametrize("starter", ["none", "parent", "grandparent"])
def test_a_process_continues_while_its_starter_lives(starter):
    """Also with another process in between, such as a joblib worker."""
    here = f" {socket.gethostname()} "
    pids = {"none": "", "parent": f"{os.getpid()}{here}", "grandparent": f"{os.getppid()}{here}"}
    code = "from se_lightning.cli import process; process.die_with_parent(); print('alive')"
    environment = {**os.environ, "LOCAL_RANK": "1", process._STARTER: pids[starter]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
