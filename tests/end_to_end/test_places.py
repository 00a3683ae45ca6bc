"""Full disks, deleted folders and unreachable servers cause one clear message and no hang."""

import errno
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
import torch

from se_lightning.checkpoint import AtomicCheckpointIO

TINY = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.accelerator=cpu",
    "lr_scheduler=constant",
)


def error_message(error: str) -> str:
    assert "Traceback" not in error
    _, found, last = error.rstrip().rpartition("se_lightning: error: ")
    assert found, error
    return last


def limited(kilobytes: int) -> list[str]:
    """Return a command whose process cannot write larger files."""
    run = f'ulimit -f {kilobytes}; exec {shlex.quote(sys.executable)} -m se_lightning "$@"'
    return ["bash", "-c", run, "run"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch, number, call):
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"a": torch.ones(3)}, path)

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        files.save_checkpoint({"a": torch.zeros(3)}, path)
    assert raised.value.filename == str(path)
    assert "the previous one is kept" in str(raised.value)
    assert torch.equal(files.load_checkpoint(path)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_over_the_file_size_limit_is_reported(tmp_path):
    path = tmp_path / "last.ckpt"
    code = (
        "import torch; from se_lightning.checkpoint import AtomicCheckpointIO as IO\n"
        f"IO().save_checkpoint({{'a': torch.ones(1000)}}, {str(path)!r})\n"
        f"try: IO().save_checkpoint({{'a': torch.ones(1000000)}}, {str(path)!r})\n"
        "except OSError as error: print(error)\n"
    )
    run = f"ulimit -f 1000; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=120)
    assert "File too large: the checkpoint was not saved; the previous one is kept" in (
        done.stdout
    ), done.stderr
    assert len(torch.load(path, weights_only=True)["a"]) == 1000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "kind",
    ["'", '"', " ", "%", "#", "=", "a b=c", "$x", "\u00fc\u2603", "a,b", "[x]", "{y}", "(z)"],
)
def test_a_run_directory_may_have_any_name(run_main, tmp_path, result, kind):
    folder = tmp_path / f"run{kind}1"
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    code, error = run_main(
        f'hydra.run.dir="{quoted}"', "trainer.max_epochs=0", "callbacks=none", *TINY[1:],
        "trainer.limit_test_batches=0", "trainer.limit_val_batches=0",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"


DELETER = """
import shutil
from pytorch_lightning import Callback
class Deleter(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            shutil.rmtree(trainer.default_root_dir)
"""


@pytest.mark.parametrize("callbacks", [[], ["callbacks=checkpoint"]])
def test_a_run_directory_deleted_during_the_run_is_reported(
    run_main, tmp_path, monkeypatch, callbacks
):
    (tmp_path / "deleter.py").write_text(DELETER)
    monkeypatch.syspath_prepend(tmp_path)
    started = time.monotonic()
    code, error = run_main(*TINY, *callbacks, "+callbacks.x={_target_: deleter.Deleter}")
    assert code == 1
    assert "outputs" in error_message(error)
    assert time.monotonic() - started < 60


def test_a_read_only_run_directory_is_reported(run_main, tmp_path):
    code, error = run_main(*TINY, "hydra.run.dir=/proc/nowhere/run")
    assert code == 1
    assert "/proc/nowhere" in error_message(error)
    (tmp_path / "file").write_text("mine")
    code, error = run_main(*TINY, f"hydra.run.dir={tmp_path}/file/run")
    assert code == 1
    assert "Not a directory" in error_message(error)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_reported(run_main, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, error = run_main(*TINY, f"hydra.run.dir={tmp_path}/locked/run")
    assert code == 1
    assert "Permission denied" in error_message(error)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 8, 100, 1000])
def test_a_run_on_a_full_disk_ends_with_one_message(cli, tmp_path, kilobytes):
    done = cli(*TINY, "logger=csv", command=limited(kilobytes), check=False)
    assert done.returncode == 1
    assert "File too large" in error_message(done.stderr)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_full_disk_keeps_earlier_checkpoints(cli, tmp_path):
    """On a small file system, if this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs to mount a file system")
    try:
        done = cli(
            *TINY, "trainer.max_epochs=9", "logger=csv", f"hydra.run.dir={disk}/run",
            "callbacks.checkpoint.save_top_k=-1", "callbacks.checkpoint.filename='{epoch}'",
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "No space left on device" in error_message(done.stderr)
        kept = list((disk / "run" / "checkpoints").iterdir())
        assert kept
        assert not [path for path in kept if path.suffix == ".tmp"]
        for path in kept:
            assert torch.load(path, weights_only=True)["state_dict"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_an_unreachable_wandb_means_offline(cli, tmp_path, result):
    started = time.monotonic()
    done = cli(
        *TINY,
        "logger.wandb.init_timeout=5",
        env={"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40},
    )
    assert "W&B: offline (" in done.stdout + done.stderr
    assert result(tmp_path)["status"] == "completed"
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_only_one_of_two_runs_in_one_directory_trains(tmp_path):
    command = [sys.executable, "-m", "se_lightning", *TINY, "logger=csv", "hydra.run.dir=run"]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    errors = [run.communicate(timeout=250)[1].decode() for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 1], errors
    refusal = error_message(errors[codes.index(1)])
    assert "is in use by another run" in refusal or "already holds a run" in refusal
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/proc/nowhere"},
        {"TMPDIR": "/nonexistent"},
        {"LANG": "C", "LC_ALL": "C"},
        {"COLUMNS": "0"},
        {"XDG_CACHE_HOME": "/proc/nowhere", "SE_LIGHTNING_CACHE": "/proc/nowhere"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_run_completes_in_a_restricted_environment(cli, tmp_path, result, environment):
    folder = tmp_path / "r\u00fcn"
    folder.mkdir()
    cli(*TINY, cwd=folder, env={"WANDB_MODE": "offline", **environment})
    assert result(folder)["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], [*TINY, "logger=csv"]])
def test_a_closed_pipe_causes_no_traceback(tmp_path, arguments):
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "se_lightning", *arguments]))
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], cwd=tmp_path, capture_output=True, text=True,
        timeout=250, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.slow
def test_no_standard_input_is_needed(tmp_path, result):
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "se_lightning", *TINY]))
    done = subprocess.run(
        ["bash", "-c", f"{command} logger=csv <&-"], cwd=tmp_path, capture_output=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert result(tmp_path)["status"] == "completed"
