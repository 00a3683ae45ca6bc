"""A run directory of version 0.1.0, killed after 3 of 5 epochs, can still be read.

``golden/se_simple_run.tar.xz`` was written by commit 3d54006 with ``model=se_simple
trainer.accelerator=cpu logger=csv optimizer.lr=0.02 trainer.max_epochs=5 model.ratio=4
data.num_workers=0`` and SIGKILL. The figures below are those of the same command without the kill.
"""

import csv
import tarfile
from pathlib import Path

import pytest
import torch

from se_lightning import SESimpleModule

ARCHIVE = Path(__file__).parent.parent / "golden" / "se_simple_run.tar.xz"
WHOLE = {"val/loss": 0.5333412289619446, "test/acc1": 0.894444465637207}
WHOLE |= {"test/loss": 0.5235272645950317, "train/loss": 1.517755150794983}


@pytest.fixture
def run_dir(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def test_the_checkpoint_loads_in_python(run_dir):
    model = SESimpleModule.load_from_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert model.hparams["ratio"] == 4
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["state_dict"][name])


def test_the_checkpoint_can_be_tested(run_dir, cli, result, tmp_path):
    path = run_dir / "checkpoints" / "best.ckpt"
    cli("task=test", f"ckpt_path={path}", "logger=csv", "hydra.run.dir=tested")
    found = result(tmp_path / "tested")
    assert (found["status"], found["model"]) == ("completed", "SESimpleModule")
    with (run_dir / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert len(losses) == 3
    assert 0.5 < found["metrics"]["test/loss"] < 1.5 * min(losses)


def test_the_resumed_run_matches_an_uninterrupted_one(run_dir, cli, result):
    cli(f"resume={run_dir}")
    found = result(run_dir)
    assert (found["status"], found["epochs"], found["steps"]) == ("completed", 5, 100)
    for name, value in WHOLE.items():  # not bit for bit: rounding depends on the processor
        assert found["metrics"][name] == pytest.approx(value, rel=1e-3), name
