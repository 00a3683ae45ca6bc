"""A head with one logit gives what the same network with two logits gives, in every task."""

import numpy as np
import pyarrow.parquet
import pytest
import torch
from pytorch_lightning import Trainer

from se_lightning import ClassSelectivity, FakeDataModule, SEResNetModule
from se_lightning.tasks import analyze, compare, export, fold, what_if

NET = {"depth": [1, 1], "widths": [8, 16], "stem": "cifar", "ratio": 4, "in_channels": 3}


@pytest.fixture(scope="module")
def data():
    data = FakeDataModule(num_classes=2, size=48, batch_size=16, eval_batch_size=16)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def twins(data):
    """Return two networks with the same probabilities: with one logit, and with two."""
    torch.manual_seed(0)
    two = SEResNetModule(**NET, num_classes=2).eval()
    one = SEResNetModule(**NET, num_classes=1).eval()
    images = next(iter(data.test_dataloader()))[0]
    with torch.no_grad():
        se = two.backbone.layer2[0].se  # a gate that can be folded
        se.fc2.weight.zero_()
        two.backbone.fc.bias.sub_(two(images).median(0).values)  # both classes are predicted
        state = two.state_dict()
        for name in ("weight", "bias"):
            first, second = state[f"backbone.fc.{name}"]
            state[f"backbone.fc.{name}"] = (second - first)[None]
    one.load_state_dict(state)
    with torch.no_grad():
        z, logits = one(images), two(images)
    torch.testing.assert_close(z[:, 0], logits[:, 1] - logits[:, 0])
    assert len({*(z[:, 0] > 0).tolist()}) == 2
    return one, two


def trainer(folder, *callbacks):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=list(callbacks), max_epochs=1,
    )  # fmt: skip


def tasks(model, data, folder):
    """Return the metrics of each task that predicts, and write its files."""
    torch.manual_seed(0)
    options = {"folder": str(folder), "split": "test"}
    found = analyze(model, data, **options) | what_if(model, data, **options)
    found |= compare([model, model], data, names=["a", "b"], **options)
    return found | export(model, data, **options)


def test_tasks_agree(twins, data, tmp_path):
    one, two = (tasks(model, data, tmp_path / str(n)) for n, model in enumerate(twins))
    assert one == pytest.approx(two, abs=1e-6)
    tables = [pyarrow.parquet.read_table(tmp_path / f"{n}/excitations.parquet") for n in range(2)]
    assert tables[0].equals(tables[1])
    assert {*tables[0]["prediction"].to_pylist()} == {0, 1}


def test_folding_agrees(twins, data, tmp_path):
    found = []
    for number, model in enumerate(twins):
        run = trainer(tmp_path)
        run.validate(model, data, verbose=False)
        path = tmp_path / f"{number}.ckpt"
        run.save_checkpoint(path)
        metrics = fold(model, data, str(path), folder=str(tmp_path / str(number)))
        found.append({key: value for key, value in metrics.items() if "speed" not in key})
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0]["fold/folded"] > 0


def test_metrics_predictions_and_selectivity_agree(twins, data, tmp_path):
    found = []
    for number, model in enumerate(twins):
        run = trainer(tmp_path / str(number), ClassSelectivity("all"))
        (metrics,) = run.validate(model, data, verbose=False)
        found.append((metrics, torch.cat(run.predict(model, data.test_dataloader()))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])
    files = sorted(tmp_path.rglob("*.npz"))
    tables = [dict(np.load(path)) for path in files]
    assert len(tables) == 2
    assert tables[0]["labels"].tolist() == [0, 1]
    for key, values in tables[0].items():
        np.testing.assert_array_equal(values, tables[1][key])


def test_a_run_trains_and_tests_with_one_logit(run_main, result, tmp_path):
    options = ("data=fake", "data.num_classes=2", "model.num_classes=1", "trainer.max_epochs=4")
    code, said = run_main(*options, "output_dir=run")
    assert code == 0, said
    trained = result(tmp_path / "run")["metrics"]
    code, said = run_main("task=test", "ckpt_path=run/checkpoints/best.ckpt", "output_dir=test")
    assert code == 0, said
    tested = result(tmp_path / "test")["metrics"]
    assert tested["test/acc1"] == trained["test/acc1"]
    content = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert content["state_dict"]["backbone.fc.weight"].shape[0] == 1
    assert content["hyper_parameters"]["num_classes"] == 1
