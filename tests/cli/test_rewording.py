"""No decision depends on the wording of a message: replacing every message changes nothing."""

import os

import pytest

import se_lightning.cli.errors
from se_lightning.cli.errors import Failure
from se_lightning.cli.run import out_of_memory, rank_failures
from se_lightning.cli.run.folder import RunFolder

HUNGRY = """
import torch
import pytorch_lightning as pl
from se_lightning import NonFiniteError

class Hungry(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if len(batch[1]) > 40:
            raise torch.OutOfMemoryError("planted")

class Broken(pl.Callback):
    def __init__(self, kind):
        self.error = {"user_error": ValueError, "bug": KeyError, "non_finite": NonFiniteError}[kind]

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        raise self.error("planted")
"""
FAST = ("model=se_resnet20", "data.batch_size=64", "lr_scheduler=constant", "callbacks=none")


@pytest.fixture(params=[False, True], ids=["as written", "reworded"])
def reworded(request, monkeypatch, tmp_path):
    """Replace every message that a failure carries."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "planted.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    if request.param:
        for module in (se_lightning.cli.errors, rank_failures):
            monkeypatch.setattr(module, "explain", lambda error: f"reworded {type(error).__name__}")
        halve = out_of_memory.BatchTooLargeError.__init__
        monkeypatch.setattr(
            out_of_memory.BatchTooLargeError,
            "__init__",
            lambda self, message, changes, size: halve(self, "reworded", changes, size),
        )


class Replaced(BaseException):
    """Raised in place of replacing the process."""


def test_running_out_of_memory_restarts_the_run(reworded, run_main, short, monkeypatch):
    commands = []

    def execve(path, command, environment):
        commands.append(command)
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    with pytest.raises(Replaced):
        run_main(*short, *FAST, "on_oom=accumulate", "+callbacks.hungry={_target_:planted.Hungry}")
    ((*_, command),) = [commands]
    assert {"data.batch_size=32", "trainer.accumulate_grad_batches=2"} <= set(command)


@pytest.mark.parametrize("kind", ["user_error", "bug", "non_finite"])
def test_a_failure_is_recorded_by_its_kind(reworded, run_main, short, tmp_path, result, kind):
    node = f"+callbacks.broken={{_target_:planted.Broken,kind:{kind}}}"
    code, error = run_main(*short, *FAST, node, "resume=null", "on_oom=accumulate")
    assert code == 1
    assert ("Traceback" in error) == (kind == "bug")
    kept = list(tmp_path.rglob("result.json"))
    if kind == "bug":
        assert result(tmp_path)["kind"] == "bug"
    else:
        assert kept == []  # a user error before the first step leaves nothing


def test_the_failure_of_another_rank_keeps_its_kind_and_details(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    details = {"size": "data.batch_size=64", "changes": ["data.batch_size=32"]}
    record = {"status": "failed", "rank": 1, "error": "reworded", "kind": "out_of_memory"}
    folder.write_result(record | {"details": details})
    monkeypatch.setattr(rank_failures, "_watch", type("W", (), {"leave_to_main": lambda _: None})())
    first = rank_failures.blame(KeyError("a consequence"), folder)
    assert Failure.of(first).kind == "out_of_memory"
    assert Failure.of(first).details == details
