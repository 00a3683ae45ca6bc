"""Ctrl-C and SIGTERM end a run with one message that says where it is and how to go on."""

import json
import os
import signal
import sys
import time

import pytest

from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.interrupts import ended_by_signals
from se_lightning.ranks import CHILD, Interrupted


@pytest.fixture(autouse=True)
def _own_handlers():
    """Lightning ignores further signals after Ctrl-C, as the process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pressed():
    raise KeyboardInterrupt


def exited():
    """As Lightning does."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def failed_on_the_way_out():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        try:
            raise RuntimeError("DataLoader worker exited unexpectedly")
        finally:
            raise OSError("and then")


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


ENDS = [(pressed, 130), (exited, 130), (failed_on_the_way_out, 130), (terminated, 143)]


@pytest.fixture(autouse=True)
def _default_handler():
    """Trainers of other tests leave Lightning's handler in this process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("end", "code"), ENDS)
@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_run_says_where_it_is_and_how_to_go_on(tmp_path, end, code, saved):
    folder = RunFolder(tmp_path / "my run")
    if saved:
        folder.checkpoints.mkdir(parents=True)
        folder.last_checkpoint.touch()
    with pytest.raises(Interrupted) as caught, ended_by_signals(folder):
        end()
    assert caught.value.code == code
    name = "SIGTERM" if code == 143 else "Ctrl-C"
    assert caught.value.message.startswith(f"{name}: the run in {folder.path} was stopped")
    how = f"python -m se_lightning resume='{folder.path}'" if saved else "repeat the command"
    assert how in caught.value.message
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_job_leaves_it_to_the_multirun_to_say_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv(CHILD, "1")
    with pytest.raises(Interrupted, match="130") as caught, ended_by_signals(RunFolder(tmp_path)):
        pressed()
    assert caught.value.message == f"Ctrl-C: the job in {tmp_path} was stopped"


def test_other_errors_and_other_handlers_are_left_alone(tmp_path):
    signal.signal(signal.SIGTERM, mine := lambda *_: None)
    with ended_by_signals(RunFolder(tmp_path)):
        assert signal.getsignal(signal.SIGTERM) is mine
    with pytest.raises(ValueError, match="x"), ended_by_signals(RunFolder(tmp_path)):
        raise ValueError("x")
    with pytest.raises(SystemExit) as caught, ended_by_signals(RunFolder(tmp_path)):
        sys.exit(3)
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHELASTIC_RUN_ID": "x", "RANK": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"},
        {"LOCAL_RANK": "1"},
    ],
    ids=["torchrun", "srun", "Lightning's further rank"],
)
def test_one_of_several_ranks_ends_at_once_even_where_it_waits_for_the_others(
    tmp_path, monkeypatch, environment
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with ended_by_signals(RunFolder(tmp_path)):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


PLANTED = """
import os, signal
import pytorch_lightning as pl

class Signal(pl.Callback):
    def __init__(self, hook, name):
        def send(trainer, *_):
            later = trainer.current_epoch > 0 or "test" in hook
            if later and os.environ.pop("SEND", None):
                os.kill(os.getpid(), getattr(signal, name))
        setattr(self, hook, send)
"""
LEAN = ("callbacks=none", "lr_scheduler=constant", "trainer.max_epochs=3",
        "+callbacks.last_checkpoint={_target_: se_lightning.callbacks.LastCheckpoint}",
        "hydra.run.dir=run")  # fmt: skip


@pytest.mark.parametrize(
    ("hook", "name", "code"),
    [
        ("on_train_batch_start", "SIGINT", 130),
        ("on_validation_batch_start", "SIGINT", 130),
        ("on_test_batch_start", "SIGINT", 130),
        ("on_test_batch_start", "SIGTERM", 143),
        ("on_train_batch_start", "SIGTERM", 143),
    ],
)
def test_a_single_run_is_interrupted_and_resumed(
    run_main, short, tmp_path, monkeypatch, hook, name, code
):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "signals.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    node = f"+callbacks.signal={{_target_: signals.Signal, hook: {hook}, name: {name}}}"
    monkeypatch.setenv("SEND", "1")
    found, error = run_main(*short, *LEAN, node)
    assert found == code, error
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["kind"]) == ("interrupted", "interrupted")
    assert "Traceback" not in error
    assert "traceback" not in result
    last = error.rstrip().splitlines()[-1]
    assert last == f"se_lightning: {result['error']}"
    assert f"resume={tmp_path / 'run'}" in last
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code, error = run_main(f"resume={tmp_path / 'run'}", more=())
    assert code == 0, error
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["epochs"]) == ("completed", 3)
