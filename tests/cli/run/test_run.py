"""Complete runs from the command line."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from se_lightning.cli.run import report
from se_lightning.cli.run.folder import RunFolder


def only_match(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def test_a_run_writes_its_files_and_task_test_repeats_its_accuracy(
    cli, short, tmp_path, wandb_history, result
):
    done = cli(*short, "model.ratio=8", "trainer.limit_test_batches=1.0")
    (run_dir,) = (tmp_path / "outputs").iterdir()
    left = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    assert {
        ".hydra/config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "result.json",
        "excitation/histogram.png",
        "wandb",
    } <= left
    found = result(tmp_path)
    assert found["status"] == "completed"
    assert found["model"] == "se_resnet20"
    # ResNet-20's 272,474, less two input channels, plus 3 gates of each width C: 2 C C/8 + C + C/8.
    assert found["parameters"] == 272_474 - 2 * 9 * 16 + 3 * (82 + 292 + 1096)
    assert list(dict.fromkeys(found["hidden_widths"].values())) == [2, 4, 8]
    assert (found["world_size"], found["epochs"], found["steps"]) == (1, 1, 2)
    assert {"train/loss", "val/acc1", "val/acc5", "test/acc1"} <= set(found["metrics"])
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    accuracy = f"{100 * found['metrics']['test/acc1']:.2f} %"
    assert done.stdout.rstrip().splitlines()[-4:] == [
        f"test accuracy  {accuracy}",
        f"run directory  {run_dir}",
        f"picture        {run_dir / 'excitation' / 'histogram.png'}",
        "next           python -m se_lightning task=analyze "
        f"ckpt_path=outputs/{run_dir.name}/checkpoints/best.ckpt",
    ]
    for noise in ("Tip:", "LeafSpec", "TPU", "FutureWarning", "many workers", "anonymous"):
        assert noise not in done.stdout + done.stderr
    assert done.stdout.count("W&B: offline (no account; run `wandb login`)") == 1
    with (run_dir / "metrics.csv").open() as file:
        assert any(row["test/acc1"] for row in csv.DictReader(file))
    rows = wandb_history(run_dir)
    assert any("excitation/backbone.layer3.2.se._type" in row for row in rows)

    # task=test rebuilds model and data from the checkpoint, even after it was moved.
    moved = only_match(run_dir, "best.ckpt").rename(tmp_path / "moved.ckpt")
    cli("task=test", f"ckpt_path={moved}", "logger=csv", "hydra.run.dir=again")
    again = result(tmp_path / "again")
    assert again["metrics"]["test/acc1"] == found["metrics"]["test/acc1"]
    assert again["parameters"] == found["parameters"]
    assert again["data"] == "DigitsDataModule"


@pytest.mark.slow
def test_two_processes_train_a_model_selected_with_a_plus(cli, short, result, tmp_path):
    done = cli("+model=se_resnet50", "trainer.devices=2", "trainer.strategy=ddp", *short)
    found = result(tmp_path)
    assert (found["world_size"], found["model"]) == (2, "se_resnet50")
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 1
    assert done.stdout.count("leave a last feature map of 1x1") == 1
    assert done.stdout.count("test accuracy") == 1


@pytest.mark.slow
def test_two_processes_train_a_net_with_gates_in_one_stage(cli, short, result, tmp_path):
    """DDP waits for every parameter, so gates that are switched off must not exist."""
    gates = ("model.gate=concurrent", "model.stages=[2]", "model.placement=pre")
    cli("trainer.devices=2", *gates, *short, "logger=csv")
    found = result(tmp_path)
    # Three units of stage 2, the first of which sees 16 channels; two gates each.
    assert (found["world_size"], found["gates"]) == (2, 6)
    assert list(found["hidden_widths"].values()) == [4, 8, 8]


def test_an_accuracy_of_zero_is_printed(caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        report.last_lines({"metrics": {"test/acc1": 0.0}, "picture": None}, RunFolder(tmp_path))
    assert "test accuracy  0.00 %" in caplog.text


@pytest.mark.slow
def test_more_processes_than_cores_cause_a_message(cli, short, tmp_path, result):
    cores = len(os.sched_getaffinity(0))
    done = cli(f"trainer.devices={cores + 1}", *short, "logger=csv", "callbacks=none")
    assert f"{cores + 1} CPU processes share {cores} cores, which" in done.stdout
    assert result(tmp_path)["world_size"] == cores + 1


def test_a_failing_rank_ends_the_run_with_its_error(cli, short, tmp_path, result):
    breaker = tmp_path / "breaker.py"
    breaker.write_text(
        "from pytorch_lightning import Callback\n"
        "class Breaker(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_rank == 1:\n"
        "            raise RuntimeError('rank 1 breaks')\n"
    )
    done = cli(
        "trainer.devices=2",
        *short,
        "+callbacks.breaker={_target_: breaker.Breaker}",
        "logger=csv",
        check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode != 0
    assert "RuntimeError: rank 1 breaks" in done.stderr
    found = result(tmp_path)
    assert found["status"] == "failed"
    assert found["error"] == "RuntimeError: rank 1 breaks"
    running = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in _read(path)
    ]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has exited meanwhile
        return b""


@pytest.mark.slow
def test_wandb_goes_offline_with_one_line_if_its_server_is_unreachable(
    cli, short, result, tmp_path
):
    done = cli(
        *short,
        "logger.wandb.init_timeout=2",
        env={"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
    )
    assert result(tmp_path)["status"] == "completed"
    assert done.stdout.count("W&B: offline (CommError: ") == 1


@pytest.mark.slow
def test_torchrun_runs_a_multirun_in_its_own_ranks(cli, short, tmp_path):
    cli(
        "--standalone", "--nproc_per_node=2", "-m", "se_lightning", "-m", "trainer.devices=2",
        "model.ratio=4,8", *short, "logger=csv",
        command=[sys.executable, "-m", "torch.distributed.run"],
    )  # fmt: skip
    (sweep,) = (tmp_path / "multirun").iterdir()
    results = [json.loads((sweep / job / "result.json").read_text()) for job in "01"]
    assert [result["world_size"] for result in results] == [2, 2]
    assert [result["overrides"][1] for result in results] == ["model.ratio=4", "model.ratio=8"]
    assert "| completed |" in (sweep / "summary.md").read_text()
    assert not (tmp_path / "outputs").exists()


def test_ctrl_c_ends_a_multirun_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "se_lightning", "-m", "model.ratio=4,8", "logger=csv"]
    command += ["hydra.sweep.dir=sweep"]
    running = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started = tmp_path / "sweep" / "0" / "checkpoints"
    while not started.exists():  # the first epoch is complete
        assert running.poll() is None
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert error.rstrip().endswith("se_lightning: interrupted")
    assert "Traceback" not in error
    assert not (tmp_path / "sweep" / "1").exists()
    assert "interrupted" in (tmp_path / "sweep" / "summary.md").read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


def test_tasks_refuse_wrong_checkpoints_and_options(run_main, short, tmp_path):
    options = ("lr_scheduler=constant", "callbacks=checkpoint", "hydra.run.dir=old")
    code, error = run_main(*short, *options)
    assert code == 0, error
    best = "ckpt_path=old/checkpoints/best.ckpt"
    two = "ckpt_path=[old/checkpoints/best.ckpt,old/checkpoints/last.ckpt]"
    for words, message in (
        (("task=analyze",), "This task needs a checkpoint"),
        (("task=analyze", best, "trainer.devices=2"), "task=analyze has no trainer; leave out"),
        (("task=analyze", best, "model.ratio=2"), "rebuilt from `ckpt_path` as it was trained"),
        (("task=compare", best), "this task takes two checkpoints, ckpt_path=[A,B]"),
        (("task=what_if", two), "this task takes one checkpoint"),
        (("task=test", two), "this task takes one checkpoint"),
        ((two,), "this task takes one checkpoint"),
    ):
        code, error = run_main(*words)
        assert code == 1
        assert message in error
        assert "Traceback" not in error


def test_top_k_keeps_further_epochs_beside_the_best(run_main, short, tmp_path):
    options = ("lr_scheduler=constant", "callbacks=checkpoint", "hydra.run.dir=run")
    code, err = run_main(*short, *options, "trainer.max_epochs=3", "checkpoint.top_k=2")
    assert code == 0, err
    files = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    kept = {f"epoch={epoch:03}.ckpt" for epoch in range(3)} & files
    assert len(kept) == 2
    assert files - kept == {"best.ckpt", "last.ckpt"}
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert f"epoch={best:03}.ckpt" in kept


def test_several_checkpoints_with_the_same_name_are_refused(run_main, short):
    code, err = run_main(*short, "callbacks.checkpoint.save_top_k=3")
    assert code == 1
    assert "would write all checkpoints to best.ckpt; use checkpoint.top_k=3" in err
