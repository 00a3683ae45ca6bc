import builtins

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.excitation import excitations
from se_lightning.models import SqueezeExcitation
from se_lightning.tasks import export
from se_lightning.tasks.splits import split_batches


@pytest.fixture
def data():
    data = DigitsDataModule(eval_batch_size=150)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SEResNetModule(depth=20, num_classes=10, in_channels=1, ratio=4).eval()


def test_the_rows_are_the_images_of_the_split(model, data, tmp_path):
    assert export(model, data, folder=str(tmp_path)) == {"export/images": 360}
    assert [path.name for path in tmp_path.iterdir()] == ["excitations.parquet"]
    file = pq.ParquetFile(tmp_path / "excitations.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(3)] == [150, 150, 60]
    table = file.read()
    assert table["image"].to_pylist() == list(range(360))
    assert table["label"].to_pylist() == data.labels("test").tolist()
    images = torch.cat([x for x, _ in split_batches(data, "test", torch.device("cpu"))])
    with torch.no_grad():
        assert table["prediction"].to_pylist() == model(images).argmax(1).tolist()
    gates = excitations(model, images)
    assert table.column_names == ["image", "label", "prediction", *gates]
    for layer, expected in gates.items():
        kind = table.schema.field(layer).type
        assert (kind.list_size, str(kind.value_type)) == (expected.shape[1], "float")
        found = np.array(table[layer].to_pylist(), dtype=np.float32)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_a_single_layer_of_another_split_is_exported(model, data, tmp_path):
    export(model, data, folder=str(tmp_path), split="val", layers=["layer3.0.se"])
    table = pq.read_table(tmp_path / "excitations.parquet", columns=["backbone.layer3.0.se"])
    assert table.column_names == ["backbone.layer3.0.se"]
    assert table.num_rows == len(data.labels("val"))


def test_a_layer_that_does_not_exist_is_refused_and_no_file_is_left(model, data, tmp_path):
    with pytest.raises(ValueError, match=r"no layer 'layer3.0' .*names: backbone.layer3.0.se"):
        export(model, data, folder=str(tmp_path), layers=["layer3.0"])
    with pytest.raises(ValueError, match=r"`split` \(='all'\)"):
        export(model, data, folder=str(tmp_path), split="all")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_the_previous_file(model, data, tmp_path):
    former = tmp_path / "excitations.parquet"
    former.write_text("former")
    model.backbone.layer3[2].register_forward_hook(fail_in_batch(2))
    with pytest.raises(RuntimeError, match="planted"):
        export(model, data, folder=str(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


def fail_in_batch(number):
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == number:
            raise RuntimeError("planted")

    return hook


class Spare(nn.Sequential):
    """A network with a gate that is never executed."""

    def forward(self, x):
        return self[2](self[0](x).mean((2, 3)))


def test_a_gate_that_is_never_executed_is_null(data, tmp_path):
    net = Spare(SqueezeExcitation(1, ratio=1), SqueezeExcitation(4), nn.Linear(1, 10))
    model = ImageClassifier(net, num_classes=10).eval()
    with pytest.warns(UserWarning, match="never executes them: 1"):
        excitations(net, torch.rand(1, 1, 8, 8))
    export(model, data, folder=str(tmp_path))
    table = pq.read_table(tmp_path / "excitations.parquet")
    assert table["backbone.1"].null_count == 360
    assert table["backbone.0"].null_count == 0


def test_missing_gates_and_missing_pyarrow_give_one_message(data, model, tmp_path, monkeypatch):
    plain = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), num_classes=10)
    with pytest.raises(ValueError, match=r"\(=Sequential\) has no squeeze-and-excitation gates"):
        export(plain, data, folder=str(tmp_path))
    original = builtins.__import__

    def missing(name, *more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r'pip install "se_lightning\[parquet\]"'):
        export(model, data, folder=str(tmp_path))
