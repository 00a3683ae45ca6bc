import csv
import json
import logging
import sys
from functools import partial

import pytest
import torch
from torch import nn

from se_lightning.models import create_model
from se_lightning.tasks import benchmark
from se_lightning.tasks import timing as timings

# Without a warning about gates with a single hidden unit.
FEW = partial(create_model, "se_resnet20", ratio=4)


@pytest.fixture
def run(tmp_path):
    """Return a function that benchmarks a network with small images, and returns what it writes."""

    def call(name="se_resnet18", build=None, **options):
        build = build or partial(create_model, name)
        small = {"batch_size": 2, "image_size": 32, "num_classes": 10, "rounds": 2}
        metrics = benchmark(build, name=name, folder=str(tmp_path), **small | options)
        with (tmp_path / "benchmark.csv").open() as file:
            rows = list(csv.DictReader(file))
        return metrics, rows, tmp_path

    return call


def test_each_network_is_measured_in_each_step(run):
    metrics, rows, folder = run()
    names = ["se_resnet18", "se_resnet18, gate=none", "timm's seresnet18"]
    steps = ["train", "inference", "latency"]
    assert [(row["step"], row["network"]) for row in rows] == [(s, n) for s in steps for n in names]
    # Published counts, less those of 990 classes. timm rounds the 4 hidden units of two gates to 8.
    removed, rounded = 990 * 513, 2 * 4 * (64 + 64 + 1)
    counts = [11_778_592 - removed, 11_689_512 - removed, 11_778_592 - removed + rounded]
    assert [int(row["parameters"]) for row in rows] == 3 * counts
    for row in rows:
        assert 0 < float(row["p50_s"]) <= float(row["p95_s"]) <= float(row["p99_s"])
        images = 1 if row["step"] == "latency" else 2
        assert float(row["images_per_s"]) == pytest.approx(images / float(row["p50_s"]))
        assert bool(row["memory_mb"]) == (row["step"] == "train")
    assert set(metrics) == {
        f"{step}_eager/{figure}"
        for step in steps
        for figure in ("images_per_s", "over_plain", "timm_over_this")
    }
    written = json.loads((folder / "benchmark.json").read_text())
    assert (written["model"], written["batch size"], written["precision"]) == (
        "se_resnet18", 2, "32-true",
    )  # fmt: skip
    assert written["torch"] == torch.__version__
    assert (folder / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


def test_ratios_are_medians_over_the_rounds(run, monkeypatch):
    times = {
        "se_resnet18": [1.0, 2.0, 9.0],
        "se_resnet18, gate=none": [1.0, 1.0, 3.0],  # ratios 1, 2, 3
        "timm's seresnet18": [4.0, 6.0, 9.0],  # ratios 4, 3, 1 to the network
    }
    monkeypatch.setattr(sys.modules[benchmark.__module__], "interleaved", lambda *_, **__: times)
    metrics, rows, folder = run(steps=["train"])
    assert metrics == {
        "train_eager/images_per_s": 1.0,  # 2 images in 2 s
        "train_eager/over_plain": 2.0,
        "train_eager/timm_over_this": 3.0,
    }
    assert rows[0]["over_plain"] == "2.0"
    table = (folder / "benchmark.md").read_text()
    assert (
        "| train | eager | se_resnet18 | 1 | 2000 | 8300 | 8860 | 2.000 (1.500 to 2.500) |" in table
    )


def test_memory_is_what_the_forward_pass_saves(run):
    """The gates of SE-ResNet-18 save more than nothing, and less than timm's."""
    _, rows, _ = run(steps=["train"], rounds=1)
    memory = [float(row["memory_mb"]) for row in rows]
    network = create_model("se_resnet18", num_classes=10)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    saved = timings.saved_bytes(network, lambda: network(images)) / 1e6
    assert saved == pytest.approx(memory[0], rel=0.001)  # and the logits
    assert memory[1] < memory[0] < memory[2]


class TwoHeads(nn.Module):
    """A network with an auxiliary classifier, for images with one channel."""

    in_channels, native_size = 1, 8

    def __init__(self, num_classes, gate="channel"):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, num_classes) for _ in range(2))

    def forward(self, x):
        outputs = tuple(head(x.flatten(1)) for head in self.heads)
        return outputs if self.training else outputs[0]


def test_both_losses_of_a_network_with_two_heads_are_minimized(run):
    nets = []

    def build(**options):
        nets.append(TwoHeads(**options))
        return nets[-1]

    run("two_heads", build, image_size=None, steps=["train"], peers=["plain"])
    for parameter in nets[0].parameters():
        assert parameter.grad.abs().sum() > 0


def test_a_network_that_timm_lacks_is_compared_with_its_twin_only(run, caplog):
    with caplog.at_level(logging.INFO):
        metrics, rows, _ = run("se_resnet20", FEW, steps=["inference"], rounds=1)
    assert len(rows) == 2
    assert "timm has no network of this name" in caplog.text
    assert set(metrics) == {"inference_eager/images_per_s", "inference_eager/over_plain"}


def test_each_network_is_compiled_in_the_compiled_mode(run, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)
    _, rows, _ = run("se_resnet20", FEW, modes=["eager", "compiled"], steps=["inference"], rounds=1)
    assert [row["mode"] for row in rows] == ["eager", "eager", "compiled", "compiled"]
    assert len(compiled) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ["fast"]}, r"`modes` \(='fast'\)"),
        ({"steps": ["test"]}, r"`steps` \(='test'\)"),
        ({"peers": ["other"]}, r"`peers` \(='other'\)"),
        ({"precision": "64"}, r"`precision` \(='64'\)"),
        ({"batch_size": 0}, r"`batch_size` \(=0\)"),
        ({"rounds": 0}, r"`rounds` \(=0\)"),
    ],
)
def test_invalid_arguments_are_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
