import json
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from se_lightning.cli.run import out_of_memory as memory

# Its memory holds so many samples of a batch, on a rank.
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
    """Return the override that adds a callback which lacks memory for more samples than these."""
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
def test_a_lack_of_memory_is_known_by_its_errors(error):
    assert memory.ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(28, "No space left")])
def test_other_errors_are_others(error):
    assert not memory.ran_out(error)


def test_the_allocators_real_error_is_one_of_them():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert memory.ran_out(error.value)


def test_the_message_says_which_batch_and_what_needs_half(told, short, hungry, tmp_path, result):
    code, error = told(*short, *FAST, hungry(40))
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
    """In the place of the process's replacement."""


@pytest.fixture
def replaced(monkeypatch):
    """Catch the command by which a process would be replaced."""
    caught = []

    def execve(path, command, environment):
        caught.append((command, environment))
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)  # of descriptors of the tests
    return caught


def test_accumulate_replaces_the_process_by_one_with_half_the_batch(
    told, short, hungry, tmp_path, replaced, monkeypatch
):
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(Replaced):
        told(*short, *FAST, hungry(40), "on_oom=accumulate", "trainer.accumulate_grad_batches=3")
    ((command, environment),) = replaced
    assert command[:3] == [sys.executable, "-m", "se_lightning"]
    sizes = [a for a in command if "batch" in a and "limit" not in a]
    assert sizes == ["data.batch_size=32", "trainer.accumulate_grad_batches=6"]
    (hydras,) = tmp_path.rglob(".hydra")
    assert command[-1] == f'hydra.run.dir="{hydras.parent}"'
    assert "MASTER_PORT" not in environment
    assert not list(tmp_path.rglob("result.json"))


def test_it_does_not_throw_checkpoints_away(told, short, hungry, tmp_path, replaced, monkeypatch):
    """Of two epochs, the second lacks memory."""
    (tmp_path / "modules" / "late.py").write_text(
        HUNGRY.replace("if len", "if trainer.current_epoch and len")
    )
    node = "+callbacks.hungry={_target_:late.Hungry,samples:40}"
    arguments = ("callbacks=checkpoint", "trainer.max_epochs=2", "on_oom=accumulate")
    code, error = told(*short[1:], *FAST[:3], *arguments, node)
    assert code == 1
    assert "out of memory with data.batch_size=64" in error
    assert not replaced
    assert list(tmp_path.rglob("best.ckpt"))


def test_a_batch_that_cannot_be_halved_is_told_of(told, short, hungry, replaced):
    arguments = ("data.batch_size=3", "on_oom=accumulate")
    code, error = told(*short, *FAST, hungry(1), *arguments)
    assert code == 1
    assert "model.grad_checkpointing=true" in error.splitlines()[-1]
    assert not replaced


def test_the_way_out_is_checked(told, short):
    code, error = told(*short, *FAST, "on_oom=ignore")
    assert code == 1
    assert "`on_oom`" in error.splitlines()[-1]
    assert "accumulate" in error.splitlines()[-1]


def test_validation_halves_its_own_batch():
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
def test_it_halves_until_it_fits_and_says_so(cli, short, hungry, tmp_path, result):
    """Twice, with workers and W&B's process beside it; the run directory stays the same."""
    arguments = (*FAST[:3], "on_oom=accumulate", "data.num_workers=1", hungry(20))
    done = cli(*short, *arguments, env={"WANDB_MODE": "offline"})
    found = result(tmp_path)
    assert (found["batch_size"], found["accumulate_grad_batches"]) == (16, 4)
    assert found["status"] == "completed"
    begun = [line for line in done.stdout.splitlines() if "restarting with" in line]
    assert ["data.batch_size=32" in begun[0], "data.batch_size=16" in begun[1]] == [True, True]
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    (overrides,) = tmp_path.rglob("overrides.yaml")
    assert "data.batch_size=16" in overrides.read_text()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_with_two_ranks_one_of_which_lacks_memory(cli, short, hungry, tmp_path, result, rank):
    two = ("trainer.devices=2", "trainer.strategy=ddp", "logger=csv", "on_oom=accumulate")
    cli(*short, *FAST, *two, hungry(40, rank))
    found = result(tmp_path)
    assert (found["batch_size"], found["accumulate_grad_batches"]) == (32, 2)
    assert (found["status"], found["world_size"]) == ("completed", 2)


@pytest.mark.slow
def test_in_a_multirun_the_job_restarts(cli, short, hungry, tmp_path):
    cli(*short, *FAST, "logger=csv", "on_oom=accumulate", hungry(40), "seed=1,2", "-m")
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert [(each["status"], each["batch_size"]) for each in found] == [("completed", 32)] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is the kernel's")
def test_a_real_lack_of_memory_on_a_cpu(cli, short, tmp_path, result):
    """With 6 GiB, images of 224 pixels in batches of 512 do not fit, and few do."""
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
