import logging

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import (
    DigitsDataModule,
    ExcitationCurves,
    ExcitationHistogram,
    ImageClassifier,
    SEResNetModule,
)
from se_lightning.models import SqueezeExcitation

HOME = "se_lightning.callbacks.excitation.curves"


def trainer(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "logger": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


def small(num_classes=10):
    """Return a network for images of 2 channels, with one gate of 5 channels."""
    net = nn.Sequential(
        nn.Conv2d(2, 5, 1), SqueezeExcitation(5, 1), nn.Flatten(), nn.Linear(5 * 16, num_classes)
    )
    return ImageClassifier(net, num_classes)


def loader(labels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 2, 4, 4, generator=generator)
    return DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=7)


def arrays(folder):
    with np.load(folder / "excitation" / "curves.npz") as file:
        return dict(file)


def test_the_file_has_means_and_deviations_as_by_hand(tmp_path, gates_by_hand):
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule(eval_batch_size=50)
    fitted = trainer(tmp_path, ExcitationCurves(), max_epochs=2, limit_train_batches=4)
    fitted.fit(model, data)
    gates, labels = gates_by_hand(model, data.val_dataloader())
    found = arrays(tmp_path)
    assert found["epochs"] == 2
    assert found["labels"].tolist() == [0, 1, 2, 3]
    assert found["names"].tolist() == ["0", "1", "2", "3"]
    assert found["samples"].tolist() == [(labels == label).sum() for label in range(4)]
    drawn = list(dict.fromkeys(found["layers"].tolist()))
    assert len(drawn) == 6
    depths = list(gates)
    assert [drawn[0], drawn[-1]] == [depths[0], depths[-1]]
    for layer in drawn:
        here = found["layers"] == layer
        each = gates[layer][:, found["channels"][here]]
        assert each.shape[1] == min(50, gates[layer].shape[1])
        np.testing.assert_allclose(found["mean_of_all"][here], each.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found["std_of_all"][here], each.std(0), rtol=1e-3, atol=1e-6)
        for label in range(4):
            of_class = each[labels == label]
            np.testing.assert_allclose(found["means"][label, here], of_class.mean(0), rtol=1e-6)
            np.testing.assert_allclose(
                found["stds"][label, here], of_class.std(0), rtol=1e-3, atol=1e-6
            )
    for name in ("curves", "spread"):
        picture = tmp_path / "excitation" / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_plots_are_drawn_every_n_epochs_and_once_at_the_end(tmp_path):
    drawn = []

    class Spy(ExcitationCurves):
        def _draw(self, trainer, summary):
            super()._draw(trainer, summary)
            drawn.append(arrays(tmp_path)["epochs"].item())

    options = {"limit_train_batches": 1, "num_sanity_val_steps": 0}
    for epochs, every, expected in ((3, 2, [2, 3]), (2, 2, [2]), (2, 1, [1, 2]), (1, 8, [1])):
        fitted = trainer(tmp_path, Spy(every_n_epochs=every), max_epochs=epochs, **options)
        fitted.fit(small(), loader([0, 1] * 4), loader([0, 1, 2, 3, 3, 1]))
        assert drawn == expected
        drawn.clear()


def test_the_papers_classes_are_drawn_if_there_are_1000(tmp_path, caplog):
    labels = [1, 254, 404, 5, 254]  # no cliff
    curves = ExcitationCurves()
    fitted = trainer(tmp_path, curves, max_epochs=2, num_sanity_val_steps=0)
    with caplog.at_level("WARNING", logger=HOME):
        fitted.fit(small(1000), loader(labels), loader(labels))
    assert arrays(tmp_path)["names"].tolist() == ["goldfish", "pug", "plane", "cliff"]
    assert arrays(tmp_path)["samples"].tolist() == [1, 2, 1, 0]
    assert np.isnan(arrays(tmp_path)["means"][3]).all()
    (warning,) = [record for record in caplog.records if record.name == HOME]  # once in two epochs
    assert "has no samples of cliff," in warning.getMessage()
    assert warning.levelno == logging.WARNING


def test_batches_without_labels_have_the_curve_of_all_samples(tmp_path, caplog):
    class Bare(ImageClassifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    model = Bare(small().backbone, 10)
    images = DataLoader(TensorDataset(torch.randn(6, 2, 4, 4)), batch_size=6)
    trainer(tmp_path, ExcitationCurves()).validate(model, images, verbose=False)
    assert "has no samples of 0, 1, 2, 3" in caplog.text
    assert np.isfinite(arrays(tmp_path)["mean_of_all"]).all()


def test_classes_and_layers_can_be_given_by_name(tmp_path):
    curves = ExcitationCurves(["7", 2], layers=["layer3.1.se"], channels=4)
    model = SEResNetModule(20, ratio=4, in_channels=1)
    trainer(tmp_path, curves).validate(model, DigitsDataModule(), verbose=False)
    assert arrays(tmp_path)["labels"].tolist() == [7, 2]
    assert set(arrays(tmp_path)["layers"].tolist()) == {"backbone.layer3.1.se"}
    assert arrays(tmp_path)["channels"].tolist() == [0, 21, 42, 63]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "`channels` .=0. must be at least 1"),
        ({"every_n_epochs": 0}, "`every_n_epochs` .=0. must be at least 1"),
        ({"classes": [10]}, "no class 10"),
        ({"classes": ["cat"]}, "no class 'cat'"),
        ({"layers": ["layer3.1"]}, "Closest names: backbone.layer3.1.se"),
    ],
)
def test_invalid_arguments_are_refused_before_the_first_step(tmp_path, options, message):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, ExcitationCurves(**options), max_epochs=1).fit(model, DigitsDataModule())


def test_it_works_beside_other_callbacks(tmp_path):
    callbacks = [
        ExcitationCurves([3], every_n_epochs=2),
        ExcitationCurves([8]),
        ExcitationHistogram(),
    ]
    model = SEResNetModule(20, ratio=4, in_channels=1)
    trainer(tmp_path, *callbacks).validate(model, DigitsDataModule(), verbose=False)
    assert callbacks[0].summary is callbacks[1].summary
    assert callbacks[0].summary.classes == (3, 8)
    assert arrays(tmp_path)["labels"].tolist() == [8]  # the last to save


def test_a_network_without_gates_trains(tmp_path):
    model = SEResNetModule(20, gate="none", in_channels=1)
    fitted = trainer(tmp_path, ExcitationCurves(layers=["x"]), max_epochs=1, limit_train_batches=1)
    fitted.fit(model, DigitsDataModule())
    assert not (tmp_path / "excitation").exists()
