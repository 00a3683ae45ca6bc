import json
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from se_lightning.cli.run import out_of_memory as memory

# Runs out of memory on one rank if a batch has more than this many samples.
HUNGRY = """
import torch
import pytorch_lightning as pl


class Hungry(pl.Callback):
    def __init__(self, samples, rank=0):
        self.samples, self.rank = samples, rank

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if len(batch[1]) > self.samples and trainer.global_rank == self.rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""


@pytest.fixture
def hungry(tmp_path, monkeypatch):
    """Return a function that builds the override for adding the callback."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "hungry.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    node = "+callbacks.hungry={{_target_:hungry.Hungry,samples:{},rank:{}}}"
    return lambda samples, rank=0: node.format(samples, rank)


FAST = ("model=se_resnet20", "data.batch_size=64", "lr_scheduler=constant", "callbacks=none")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("planted"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_errors_are_recognized(error):
    assert memory.ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(28, "No space left")])
def test_unrelated_errors_are_not_recognized(error):
    assert not memory.ran_out(error)


def test_a_real_error_of_the_allocator_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert memory.ran_out(error.value)


def test_the_message_states_the_batch_and_how_to_halve_it(
    run_main, short, hungry, tmp_path, result
):
    code, error = run_main(*short, *FAST, hungry(40))
    assert code == 1
    assert error.splitlines()[-1] == (
        "se_lightning: error: out of memory with data.batch_size=64 of 1x32x32 images on cpu "
        "(CUDA out of memory. Tried to allocate 2.00 GiB.). Set data.batch_size=32 "
        "trainer.accumulate_grad_batches=2 for the same optimizer steps with half the batch; "
        "on_oom=accumulate does this automatically."
    )
    assert "Traceback" not in error
    found = result(tmp_path)
    assert (found["status"], found["kind"]) == ("failed", "out_of_memory")
    assert found["details"]["size"] == "data.batch_size=64"
    (hydras,) = tmp_path.rglob(".hydra")
    assert (hydras / "overrides.yaml").exists()


class Replaced(BaseException):
    """Raised in place of replacing the process."""


@pytest.fixture
def replaced(monkeypatch):
    """Record the command that would replace the process."""
    caught = []

    def execve(path, command, environment):
        caught.append((command, environment))
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)  # keep pytest's descriptors
    return caught


def test_accumulate_restarts_the_run_with_half_the_batch(
    run_main, short, hungry, tmp_path, replaced, monkeypatch
):
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(Replaced):
        run_main(
            *short, *FAST, hungry(40), "on_oom=accumulate", "trainer.accumulate_grad_batches=3"
        )
    ((command, environment),) = replaced
    assert command[:3] == [sys.executable, "-m", "se_lightning"]
    sizes = [a for a in command if "batch" in a and "limit" not in a]
    assert sizes == ["data.batch_size=32", "trainer.accumulate_grad_batches=6"]
    (hydras,) = tmp_path.rglob(".hydra")
    assert command[-1] == f'hydra.run.dir="{hydras.parent}"'
    assert "MASTER_PORT" not in environment
    assert not list(tmp_path.rglob("result.json"))


def test_a_run_with_checkpoints_is_not_restarted(
    run_main, short, hungry, tmp_path, replaced, monkeypatch
):
    """The second of two epochs runs out of memory."""
    (tmp_path / "modules" / "late.py").write_text(
        HUNGRY.replace("if len", "if trainer.current_epoch and len")
    )
    node = "+callbacks.hungry={_target_:late.Hungry,samples:40}"
    arguments = ("callbacks=checkpoint", "trainer.max_epochs=2", "on_oom=accumulate")
    code, error = run_main(*short[1:], *FAST[:3], *arguments, node)
    assert code == 1
    assert "out of memory with data.batch_size=64" in error
    assert not replaced
    assert list(tmp_path.rglob("best.ckpt"))


def test_a_batch_that_cannot_be_halved_is_an_error(run_main, short, hungry, replaced):
    arguments = ("data.batch_size=3", "on_oom=accumulate")
    code, error = run_main(*short, *FAST, hungry(1), *arguments)
    assert code == 1
    assert "model.grad_checkpointing=true" in error.splitlines()[-1]
    assert not replaced


def test_an_invalid_on_oom_is_refused(run_main, short):
    code, error = run_main(*short, *FAST, "on_oom=ignore")
    assert code == 1
    assert "`on_oom`" in error.splitlines()[-1]
    assert "accumulate" in error.splitlines()[-1]


def test_validation_suggests_half_the_validation_batch():
    config = OmegaConf.create({"data": {"batch_size": 8, "eval_batch_size": 100}, "trainer": {}})

    def validation_step():
        raise torch.OutOfMemoryError("planted")

    trainer = type("T", (), {"strategy": type("S", (), {"root_device": "cuda:0"})})
    data = type("D", (), {"eval_batch_size": 100, "in_channels": 3, "image_size": 224})
    with (
        pytest.raises(
            memory.BatchTooLargeError, match="eval_batch_size=50, which changes no metric"
        ),
        memory.explained(config, trainer, data),
    ):
        validation_step()


@pytest.mark.slow
def test_the_batch_is_halved_until_it_fits(cli, short, hungry, tmp_path, result):
    """Twice here, with data workers and a W&B process; the run directory stays the same."""
    arguments = (*FAST[:3], "on_oom=accumulate", "data.num_workers=1", hungry(20))
    done = cli(*short, *arguments, env={"WANDB_MODE": "offline"})
    found = result(tmp_path)
    assert (found["batch_size"], found["accumulate_grad_batches"]) == (16, 4)
    assert found["status"] == "completed"
    restarts = [line for line in done.stdout.splitlines() if "restarting with" in line]
    assert "data.batch_size=32" in restarts[0]
    assert "data.batch_size=16" in restarts[1]
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    (overrides,) = tmp_path.rglob("overrides.yaml")
    assert "data.batch_size=16" in overrides.read_text()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in processes


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_restart_if_one_runs_out_of_memory(cli, short, hungry, tmp_path, result, rank):
    two = ("trainer.devices=2", "trainer.strategy=ddp", "logger=csv", "on_oom=accumulate")
    cli(*short, *FAST, *two, hungry(40, rank))
    found = result(tmp_path)
    assert (found["batch_size"], found["accumulate_grad_batches"]) == (32, 2)
    assert (found["status"], found["world_size"]) == ("completed", 2)


@pytest.mark.slow
def test_jobs_of_a_multirun_restart(cli, short, hungry, tmp_path):
    cli(*short, *FAST, "logger=csv", "on_oom=accumulate", hungry(40), "seed=1,2", "-m")
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert [(each["status"], each["batch_size"]) for each in found] == [("completed", 32)] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is specific to Linux")
def test_running_out_of_memory_on_a_cpu_is_reported(cli, short, tmp_path, result):
    """Batches of 512 images of 224 pixels do not fit into 6 GiB."""
    limited = [
        *("bash", "-c", 'ulimit -v 6291456; exec "$@"', "-"),
        *(sys.executable, "-m", "se_lightning"),
    ]
    arguments = ("data=fake", "data.size=1024", "data.image_size=224", "data.batch_size=512")
    done = cli(*short, *arguments, "model=se_resnet18", "logger=csv", command=limited, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "out of memory with data.batch_size=512 of 3x224x224 images on cpu" in last
    assert result(tmp_path)["status"] == "failed"
