import csv
import logging
import sys

import pytest
import torch
from matplotlib.image import imread

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.excitation.what_if import ALL_BLOCKS, REPLACEMENTS
from se_lightning.tasks import what_if
from se_lightning.tasks.what_if import _batches


@pytest.fixture(scope="module")
def data():
    data = DigitsDataModule(eval_batch_size=90)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SEResNetModule([1, 1], widths=[8, 16], stem="cifar", ratio=4, in_channels=1).eval()


def test_the_table_the_plot_and_all_numbers_are_written(model, data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        metrics = what_if(model, data, folder=str(tmp_path))
    images = len(data.labels("test"))
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in data.test_dataloader())
    assert metrics["what_if/baseline"] == pytest.approx(right / images)
    paths = ["backbone.layer1.0.se", "backbone.layer2.0.se", ALL_BLOCKS]
    drops = {f"what_if/{name}/{path}" for name in REPLACEMENTS for path in paths}
    assert set(metrics) == {"what_if/baseline"} | drops
    with (tmp_path / "what_if.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 3 * 4
    assert {row["samples"] for row in rows} == {str(images)}
    for row in rows[1:]:
        name = f"what_if/{row['replacement']}/{row['block']}"
        assert float(row["drop"]) == metrics[name]
    text = (tmp_path / "what_if.md").read_text()
    assert f"on {images} images of test" in text
    assert "| backbone.layer2.0.se | " in text
    assert imread(tmp_path / "what_if.png").std() > 0.05
    assert f"on {images} images of test" in caplog.text
    assert what_if(model, data, folder=str(tmp_path)) == metrics


def test_replacing_gates_of_1_has_no_effect(data, tmp_path):
    options = {"stem": "cifar", "ratio": 4, "in_channels": 1}
    model = SEResNetModule([1, 1], gate_activation="double-sigmoid", **options).eval()
    metrics = what_if(model, data, folder=str(tmp_path), split="val", images=50)
    assert {value for name, value in metrics.items() if name != "what_if/baseline"} == {0}


def test_a_subset_is_evenly_spaced_over_the_split_and_shuffled(data):
    read = _batches(data, "test", 30, torch.device("cpu"))
    labels = torch.cat([labels for _, labels in read()])
    images = torch.cat([images for images, _ in read()])
    assert len(labels) == 30
    whole = [torch.cat(part) for part in zip(*data.test_dataloader(), strict=True)]
    whole[0] = data.on_after_batch_transfer([whole[0], whole[1]], 0)[0]
    places = [int((whole[0] == image).flatten(1).all(1).nonzero()[0]) for image in images]
    assert sorted(places) == [i * len(whole[1]) // 30 for i in range(30)]
    assert places != sorted(places)
    assert torch.equal(labels, whole[1][places])


def test_images_that_do_not_fit_in_memory_are_read_repeatedly(data, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[_batches.__module__], "KEPT_BYTES", 1000)
    read = _batches(data, "test", None, torch.device("cpu"))
    assert "do not fit in memory" in caplog.text
    for _ in range(2):
        assert torch.cat([y for _, y in read()]).tolist() == data.labels("test").tolist()


def test_invalid_arguments_are_refused(model, data, tmp_path):
    with pytest.raises(ValueError, match=r"`split` \(='tset'\)"):
        what_if(model, data, folder=str(tmp_path), split="tset")
    with pytest.raises(ValueError, match=r"`images` \(=0\)"):
        what_if(model, data, folder=str(tmp_path), images=0)
    plain = ImageClassifier(torch.nn.Linear(2, 10), 10)
    with pytest.raises(ValueError, match="no squeeze-and-excitation gates"):
        what_if(plain, data, folder=str(tmp_path))
