"""What the loggers and the files of a run say about it."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from se_lightning.cli.command import Command
from se_lightning.cli.run.report import run_name


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        ([], ""),
        (["model=se_resnet20", "data=digits", "data.root=/my/data", "trainer.devices=2"], ""),
        (["model.ratio=8", "seed=3", "logger=csv", "trainer.enable_progress_bar=false"],
         " ratio=8 seed=3"),
        (["optimizer=adamw", "optimizer.lr=0.01", "+experiment=quick", "hydra.run.dir=r"],
         " adamw lr=0.01 quick"),
        (["model.ratio=4", "trainer.max_epochs=5", "callbacks=ema", "model.ratio=2"],
         " ratio=2 max_epochs=5 ema"),
    ],
)  # fmt: skip
def test_a_run_is_named_by_its_network_its_data_and_what_differs(overrides, differences):
    result = {"model": "se_resnet20", "data": "digits"}
    assert (
        run_name(result, Command(overrides=tuple(overrides))) == f"se_resnet20 digits{differences}"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs with an offline W&B run."""
    folder = tmp_path_factory.mktemp("run")
    options = [
        "trainer.max_epochs=2", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "trainer.accelerator=cpu", "model.ratio=2",
        "hydra.run.dir=.", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    environment = os.environ | {"WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "se_lightning", *options]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def test_wandb_has_the_name_the_network_and_each_option_once(run, wandb_run, wandb_values):
    name, _ = wandb_run(run)
    assert name.startswith("se_resnet20 digits max_epochs=2 limit_train_batches=2 ")
    assert name.endswith(" ratio=2")
    config = wandb_values(run, "config")
    assert config["model"]["ratio"] == 2
    assert config["run"]["model"] == "se_resnet20"
    assert config["run"]["data"] == "digits"
    assert config["run"]["parameters"] == 288_818
    assert config["run"]["hidden_widths"]["backbone.layer3.2.se"] == 32
    # The module's and the datamodule's own options are in `model` and `data`, not repeated.
    assert not {"ratio", "depth", "batch_size", "rotation"} & config.keys()


def test_wandbs_summary_has_the_best_and_the_last_score(run, wandb_values):
    summary = wandb_values(run, "summary")
    with (run / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert len(losses) == 2
    assert summary["best/val/loss"] == pytest.approx(min(losses), rel=1e-6)
    assert summary["val/loss"] == pytest.approx(losses[-1], rel=1e-6)


def test_a_layer_has_one_name_in_all_files(run):
    result = json.loads((run / "result.json").read_text())
    layers = list(result["hidden_widths"])
    assert layers[0] == "backbone.layer1.0.se"
    with (run / "excitation" / "doctor.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == layers
    for name in ("histogram", "selectivity"):
        assert np.load(run / "excitation" / f"{name}.npz")["layers"].tolist() == layers
    with (run / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert [c for c in columns if c.startswith("selectivity/")] == [
        f"selectivity/{layer}" for layer in layers
    ]
