import importlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.excitation import excitations
from se_lightning.models import SqueezeExcitation
from se_lightning.tasks import analyze
from se_lightning.tasks.report.page import Section, page, table_html
from se_lightning.tasks.splits import split_batches

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def digits():
    data = DigitsDataModule(eval_batch_size=90)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SEResNetModule(depth=20, num_classes=10, in_channels=1, ratio=4).eval()


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    """Analyze once; return the metrics and the folder."""
    folder = tmp_path_factory.mktemp("run")
    return analyze(model, data, folder=str(folder), classes=["3", "7"]), folder / "analysis"


@pytest.fixture(scope="module")
def by_hand(model, data):
    """Return the gates on the split in float64, its labels, and the accuracy."""
    batches = list(split_batches(data, "val", torch.device("cpu")))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    gates = {k: v.double().numpy() for k, v in excitations(model, images).items()}
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).double().mean()
    return gates, labels.numpy(), float(right)


def test_the_numbers_equal_those_by_hand(done, by_hand):
    metrics, folder = done
    gates, labels, accuracy = by_hand
    arrays = np.load(folder / "statistics.npz")
    assert metrics["analyze/images"] == 180
    assert metrics["analyze/acc1"] == pytest.approx(accuracy)
    assert arrays["layers"].tolist() == list(gates)
    assert arrays["channels"].tolist() == [gate.shape[1] for gate in gates.values()]
    assert arrays["classes"].tolist() == list(range(10))
    assert arrays["counts"][:, 64:].sum() == 0
    every = np.concatenate(list(gates.values()), axis=1)
    np.testing.assert_allclose(arrays["means"], every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(arrays["stds"], every.std(0), rtol=1e-3, atol=1e-6)
    means = np.stack([every[labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(arrays["class_means"], means, rtol=1e-5)
    for layer, (name, gate) in enumerate(gates.items()):
        counts, edges = np.histogram(gate, 64, (0, 1))
        np.testing.assert_allclose(arrays["edges"], edges)
        # With another batch size, a few gates may fall on the other side of an edge.
        assert np.abs(arrays["counts"][layer, :64] - counts).sum() <= 4
        centred = gate - gate.mean(0)
        of_class = np.stack([centred[labels == label].mean(0) for label in labels])
        selectivity = (of_class**2).sum() / (centred**2).sum()
        assert metrics[f"analyze/selectivity/{name}"] == pytest.approx(selectivity, rel=1e-3)
        assert arrays["selectivity"][layer] == metrics[f"analyze/selectivity/{name}"]


def test_the_report_is_self_contained_and_describes_the_network(done):
    _, folder = done
    text = (folder / "report.html").read_text()
    assert "//" not in re.sub(r"data:image/png;base64,[\w+/=]+", "data:", text)
    assert "<script" not in text
    assert all(
        link.startswith("data:") for link in re.findall(r'(?:src|srcset|href)="(.*?)"', text)
    )
    for what in ("SEResNet, depth 20, ratio 4, 280,670 parameters", "Digits, val", "layer3.2.se"):
        assert what in text
    assert len(re.findall("<picture>", text)) == 4
    for name in ("histogram", "curves", "spread", "selectivity"):
        assert imread(folder / f"{name}.png").std() > 0.02


def test_names_are_escaped_in_html():
    evil = "<b>&\"'"
    section = Section(evil, evil, table_html([evil], [[evil]], total=[evil]))
    made = page(evil, {evil: evil}, [section])
    assert evil not in made
    assert made.count("&lt;b&gt;&amp;") == 9


def browse(path, picture, scheme):
    """Open a file in a browser without network; return its screenshot and its console."""
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"),
            f"--user-data-dir={picture.with_suffix('')}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={picture}",
            "--window-size=1200,3000",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return imread(picture), console


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_it_light_and_dark_without_errors(done, tmp_path):
    report = done[1] / "report.html"
    dark, complaints = browse(report, tmp_path / "dark.png", 0)
    assert complaints == []
    light, complaints = browse(report, tmp_path / "light.png", 1)
    assert complaints == []
    assert light.shape[:2] == dark.shape[:2] == (3000, 1200)
    assert light[..., :3].mean() > 0.8
    assert dark[..., :3].mean() < 0.25
    planted = tmp_path / "planted.html"
    planted.write_text(report.read_text().replace("</body>", "<script>planted()</script></body>"))
    _, complaints = browse(planted, tmp_path / "planted.png", 1)
    assert "planted is not defined" in complaints[0]


class Spare(nn.Module):
    """A network with a gate that is never executed, and one that is NaN."""

    def __init__(self):
        super().__init__()
        self.se = SqueezeExcitation(1, ratio=1)
        self.spare = SqueezeExcitation(4)
        self.sick = SqueezeExcitation(1, ratio=1)
        nn.init.constant_(self.sick.fc2.bias, torch.nan)
        self.fc = nn.Linear(1, 10)

    def forward(self, x):
        self.sick(x)
        return self.fc(self.se(x).mean((2, 3)))


def test_nan_gates_and_gates_that_are_never_executed_are_reported(data, tmp_path, caplog):
    model = ImageClassifier(Spare(), num_classes=10).eval()
    metrics = analyze(model, data, folder=str(tmp_path))
    assert "analyze/selectivity/spare" not in metrics  # NaN is not valid JSON
    text = (tmp_path / "analysis" / "report.html").read_text()
    assert "the gate is never executed" in text
    assert "180 gates are NaN" in text
    assert "180 values are NaN or out of range" in text
    assert "spare: the gate is never executed" in caplog.text


def test_only_the_chosen_layers_are_analyzed(model, data, tmp_path):
    metrics = analyze(model, data, folder=str(tmp_path), layers=["layer3.2.se", "layer1.0.se"])
    layers = ["backbone.layer1.0.se", "backbone.layer3.2.se"]
    assert list(metrics)[2:] == [f"analyze/selectivity/{layer}" for layer in layers]
    assert np.load(tmp_path / "analysis" / "statistics.npz")["layers"].tolist() == layers
    assert "layer2.0.se" not in (tmp_path / "analysis" / "report.html").read_text()


def test_only_the_chosen_classes_are_kept_if_there_are_too_many(
    model, data, tmp_path, monkeypatch, caplog
):
    module = importlib.import_module("se_lightning.tasks.analyze")  # the package has the function
    monkeypatch.setattr(module, "MOST_STATE", 1e4)
    analyze(model, data, folder=str(tmp_path), classes=["3", "7"], layers=["layer3.2.se"])
    assert "Only the 2 chosen classes are kept" in caplog.text
    assert np.load(tmp_path / "analysis" / "statistics.npz")["classes"].tolist() == [3, 7]


def test_invalid_arguments_are_refused(model, data, tmp_path):
    plain = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), num_classes=10)
    with pytest.raises(ValueError, match=r"\(=Sequential\) has no squeeze-and-excitation gates"):
        analyze(plain, data, folder=str(tmp_path))
    with pytest.raises(ValueError, match="no class 'cat'"):
        analyze(model, data, folder=str(tmp_path), classes=["cat"])
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        analyze(model, data, folder=str(tmp_path), layers=["layer9"])
    with pytest.raises(ValueError, match="`bins`"):
        analyze(model, data, folder=str(tmp_path), bins=0)
    assert list(tmp_path.iterdir()) == []
