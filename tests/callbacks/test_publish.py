"""Excitations in W&B, TensorBoard and CSV files, and without any logger."""

import csv

import numpy as np
import pytest
import torch
import wandb
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from se_lightning import (
    ClassSelectivity,
    DigitsDataModule,
    ExcitationCurves,
    ExcitationHistogram,
    SEResNetModule,
)
from se_lightning.loggers import GracefulWandbLogger, finish_wandb

PICTURES = {"curves", "epochs", "histogram", "selectivity", "selectivity_epochs", "spread"}


@pytest.fixture(autouse=True)
def _finished():
    yield
    finish_wandb(failed=True)


def fit(folder, logger):
    """Train two short epochs; the second layer's gate is constant, its selectivity undefined."""
    model = SEResNetModule(20, ratio=4, in_channels=1)
    torch.nn.init.zeros_(model.backbone.layer1[1].se.fc2.weight)
    model.backbone.layer1[1].se.requires_grad_(False)
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[ExcitationHistogram(16), ExcitationCurves(), ClassSelectivity()],
        logger=logger,
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=3,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, DigitsDataModule())
    return trainer


def arrays(folder, name):
    with np.load(folder / "excitation" / f"{name}.npz") as file:
        return dict(file)


def check_files(folder):
    there = {path.name for path in (folder / "excitation").iterdir()}
    names = ("histogram.npz", "curves.npz", "selectivity.npz")
    assert there == {f"{name}.png" for name in PICTURES} | set(names)


def test_without_a_logger_files_are_written_to_the_folder(tmp_path):
    trainer = fit(tmp_path, logger=False)
    assert trainer.loggers == []
    check_files(tmp_path)


def test_wandb_has_scalars_histograms_and_pictures(tmp_path, wandb_history):
    fit(tmp_path, GracefulWandbLogger(save_dir=str(tmp_path)))
    finish_wandb(failed=False)
    wandb.teardown()
    check_files(tmp_path)
    rows = wandb_history(tmp_path)
    found, counted = arrays(tmp_path, "selectivity"), arrays(tmp_path, "histogram")
    for layer, name in enumerate(found["layers"].tolist()):
        logged = [row for row in rows if f"selectivity/{name}" in row]
        values = found["values"][:, layer]
        assert [row[f"selectivity/{name}"] for row in logged] == values[
            np.isfinite(values)
        ].tolist()
        logged = [row for row in rows if f"excitation/{name}.values" in row]
        assert [row["trainer/global_step"] for row in logged] == [3, 6]
        assert [row[f"excitation/{name}.values"] for row in logged] == counted["counts"][
            :, layer, :16
        ].tolist()
    assert np.isnan(found["values"][:, 1]).all()
    pictures = {key.split("/")[1].split(".")[0] for row in rows for key in row if "_type" in key}
    assert pictures >= PICTURES
    assert [row["trainer/global_step"] for row in rows if "excitation/curves._type" in row] == [
        3,
        6,
    ]


def test_tensorboard_has_scalars_histograms_and_pictures(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tmp_path, TensorBoardLogger(tmp_path, name="board"))
    check_files(tmp_path)
    (log,) = (tmp_path / "board").rglob("events.out.tfevents*")
    board = events.EventAccumulator(str(log), {"images": 0, "histograms": 0, "scalars": 0})
    board.Reload()
    found, counted = arrays(tmp_path, "selectivity"), arrays(tmp_path, "histogram")
    for layer, name in enumerate(found["layers"].tolist()):
        values = found["values"][:, layer]
        if np.isnan(values).all():
            assert f"selectivity/{name}" not in board.Tags()["scalars"]
        else:
            logged = [event.value for event in board.Scalars(f"selectivity/{name}")]
            np.testing.assert_allclose(logged, values, rtol=1e-6)
        logged = board.Histograms(f"excitation/{name}")
        assert [event.step for event in logged] == [3, 6]
        for event, counts in zip(logged, counted["counts"][:, layer], strict=True):
            histogram = event.histogram_value
            assert histogram.bucket == counts[:16].tolist()
            np.testing.assert_allclose(histogram.bucket_limit, counted["edges"][1:])
            assert (histogram.min, histogram.max) == (0, 1)
            assert histogram.num == counts[:16].sum()
            # Values are approximated by bin centers: the error is up to half the bin width.
            mean = histogram.sum / histogram.num
            by_channel = counted["means"][logged.index(event), layer]
            assert mean == pytest.approx(by_channel, abs=1 / 32)
    assert {f"excitation/{name}" for name in PICTURES} <= set(board.Tags()["images"])
    image = board.Images("excitation/histogram")[-1].encoded_image_string
    assert image.startswith(b"\x89PNG")


def test_csv_has_scalars_and_the_folder_has_files(tmp_path):
    fit(tmp_path, CSVLogger(tmp_path, name="rows"))
    check_files(tmp_path)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = arrays(tmp_path, "selectivity")
    for layer, name in enumerate(found["layers"].tolist()):
        logged = [float(row[key]) for row in rows if row.get(key := f"selectivity/{name}")]
        values = found["values"][:, layer]
        np.testing.assert_allclose(logged, values[np.isfinite(values)], rtol=1e-12)
    assert not any("excitation/" in key for key in rows[0])


def failing(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("se_lightning.callbacks.excitation.histogram.draw_histogram", failing)
    trainer = fit(tmp_path, logger=False)
    assert trainer.global_step == 6
    assert trainer.callbacks[-3].picture is None or not trainer.callbacks[-3].picture.exists()
    (line,) = [each for each in caplog.messages if "was not written" in each]
    assert line.endswith(
        "histogram.png was not written: OSError: [Errno 28] No space left on device"
    )
    assert not (tmp_path / "excitation" / "histogram.png").exists()
    assert (tmp_path / "excitation" / "curves.png").exists()


def test_a_full_disk_keeps_the_figures_that_are_there(tmp_path, monkeypatch, caplog):
    trainer = fit(tmp_path, logger=False)
    before = {path: path.read_bytes() for path in (tmp_path / "excitation").iterdir()}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing)
    monkeypatch.setattr(np, "savez_compressed", failing)
    trainer.validate(trainer.lightning_module, DigitsDataModule(), verbose=False)
    assert {path: path.read_bytes() for path in (tmp_path / "excitation").iterdir()} == before
    assert "was not written" in caplog.text
