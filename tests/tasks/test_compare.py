import copy
import csv
import logging

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.spatial import distance
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.excitation import excitations
from se_lightning.tasks import compare
from se_lightning.tasks.splits import split_batches

NAMES = ["a.ckpt", "b.ckpt"]


@pytest.fixture
def data():
    data = DigitsDataModule(eval_batch_size=90)
    data.prepare_data()
    data.setup()
    return data


def classifier(seed=0, **options):
    torch.manual_seed(seed)
    return SEResNetModule(num_classes=10, in_channels=1, **{"depth": 20, "ratio": 4, **options})


def test_a_network_equals_itself(data, tmp_path, caplog):
    net = classifier().eval()
    metrics = compare([net, copy.deepcopy(net)], data, folder=str(tmp_path), names=NAMES)
    assert "a.ckpt and b.ckpt hold equal weights" in caplog.text
    assert metrics.pop("compare/images") == 180
    layers = list(excitations(net, torch.zeros(1, 1, 32, 32)))
    cosines = {f"compare/cosine/{layer}": pytest.approx(1, abs=1e-12) for layer in layers}
    assert metrics == cosines | {f"compare/js/{layer}": 0 for layer in layers}
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == layers
    assert [float(row["image_cosine"]) for row in rows] == pytest.approx([1] * 9, abs=1e-12)


def test_the_drift_of_two_networks_equals_that_by_hand(data, tmp_path, caplog):
    nets = [classifier(seed).eval() for seed in (0, 1)]
    with caplog.at_level(logging.INFO):
        metrics = compare(nets, data, folder=str(tmp_path), split="test", names=NAMES)
    assert "equal weights" not in caplog.text
    images = torch.cat([x for x, _ in split_batches(data, "test", torch.device("cpu"))])
    gates = [excitations(net, images) for net in nets]
    with (tmp_path / "compare.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    text = (tmp_path / "compare.md").read_text()
    for layer in gates[0]:
        a, b = (each[layer].double().numpy() for each in gates)
        cosine = 1 - distance.cosine(a.mean(0), b.mean(0))
        per_image = np.mean([1 - distance.cosine(x, y) for x, y in zip(a, b, strict=True)])
        counts = [np.histogram(each[layer].numpy(), 64, (0, 1))[0] for each in gates]
        js = distance.jensenshannon(*counts, base=2) ** 2
        row = rows[layer]
        assert float(row["channels"]) == a.shape[1]
        assert metrics[f"compare/cosine/{layer}"] == float(row["cosine"])
        assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-6)
        assert float(row["image_cosine"]) == pytest.approx(per_image, abs=1e-6)
        # With another batch size, a few gates may fall on the other side of an edge.
        assert metrics[f"compare/js/{layer}"] == float(row["js"]) == pytest.approx(js, abs=2e-3)
        assert f"| {layer} | {a.shape[1]} | {float(row['cosine']):.4f} |" in text
        assert layer in caplog.text
    assert all(name in text for name in NAMES)
    assert imread(tmp_path / "compare.png").std() > 0.05


def test_networks_that_cannot_be_compared_are_refused(data, tmp_path):
    net = classifier()
    deeper = classifier(depth=32)
    with pytest.raises(ValueError, match=r"layer2.0.se \(32 .* in a.ckpt, backbone.layer1.3.se "):
        compare([net, deeper], data, folder=str(tmp_path), names=NAMES)
    with pytest.raises(ValueError, match=r"two checkpoints, got 1: ckpt_path=\[A.ckpt,B.ckpt\]"):
        compare([net], data, folder=str(tmp_path), names=NAMES[:1])
    plain = [
        ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), num_classes=10)
        for _ in NAMES
    ]
    with pytest.raises(ValueError, match=r"\(=Sequential\) has no squeeze-and-excitation gates"):
        compare(plain, data, folder=str(tmp_path), names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_gates_with_different_ranges_share_their_bins(data, tmp_path):
    """The gates of a double sigmoid are initially 1, those of a sigmoid are below."""
    nets = [classifier().eval(), classifier(gate_activation="double-sigmoid").eval()]
    metrics = compare(nets, data, folder=str(tmp_path), names=NAMES)
    assert metrics["compare/js/backbone.layer1.0.se"] == pytest.approx(1)
