import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import ClassSelectivity, DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.models import SqueezeExcitation

HOME = "se_lightning.callbacks.excitation.selectivity"


def trainer(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"logger": False, "accelerator": "cpu"}
    quiet["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


def small(num_classes=10):
    net = nn.Sequential(
        nn.Conv2d(2, 5, 1), SqueezeExcitation(5, 1), nn.Flatten(), nn.Linear(5 * 16, num_classes)
    )
    return ImageClassifier(net, num_classes)


def loader(labels):
    images = torch.randn(len(labels), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=7)


def eta_squared(captured, classes):
    """Return the share of variance between classes by path, from gates recorded by hand."""
    gates, labels = captured
    here = np.isin(labels, classes)
    of, found = labels[here], {}
    for path, each in gates.items():
        each = each[here]
        within = sum(((each[of == k] - each[of == k].mean(0)) ** 2).sum() for k in set(of.tolist()))
        found[path] = 1 - within / ((each - each.mean(0)) ** 2).sum()
    return found


def arrays(folder, name="selectivity"):
    with np.load(folder / "excitation" / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(100, range(10)), ("all", range(10)), ([1, "7", 3], [1, 7, 3]), (3, [0, 4, 9])],
)
def test_the_file_has_eta_squared_as_by_hand(tmp_path, classes, labels, gates_by_hand):
    torch.manual_seed(0)  # with other seeds, all hidden units of a layer may be dead: 0 / 0
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule(eval_batch_size=50)
    fitted = trainer(tmp_path, ClassSelectivity(classes), max_epochs=2, limit_train_batches=4)
    fitted.fit(model, data)
    labels = list(labels)
    found = arrays(tmp_path)
    assert found["labels"].tolist() == labels
    by_hand = eta_squared(gates_by_hand(model, data.val_dataloader()), labels)
    assert found["layers"].tolist() == list(by_hand)
    assert found["epochs"].tolist() == [1, 2]
    assert found["steps"].tolist() == [4, 8]
    np.testing.assert_allclose(found["values"][1], list(by_hand.values()), rtol=1e-4, atol=1e-6)
    for name in ("selectivity", "selectivity_epochs"):
        assert (tmp_path / "excitation" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_classes_recorded_for_another_callback_do_not_count(tmp_path):
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule()
    alone = tmp_path / "alone"
    trainer(alone, ClassSelectivity([2, 5])).validate(model, data, verbose=False)

    class Other(ClassSelectivity):
        def keep(self, *_):
            assert len(self.summary.classes) == 10

    both = [Other("all"), ClassSelectivity([2, 5])]
    trainer(tmp_path, *both).validate(model, data, verbose=False)
    expected = arrays(alone, "selectivity_validate")["values"]
    np.testing.assert_array_equal(arrays(tmp_path, "selectivity_validate")["values"], expected)


@pytest.mark.parametrize(("classes", "count"), [(100, 10), ("all", 10), (2, 2), ([4, 5, 6], 3)])
def test_the_memory_is_logged_once(tmp_path, caplog, classes, count):
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule()
    fitted = trainer(tmp_path, ClassSelectivity(classes), max_epochs=2, limit_train_batches=1)
    with caplog.at_level("INFO", logger=HOME):
        fitted.fit(model, data)
    (message,) = [record.getMessage() for record in caplog.records if record.name == HOME]
    size = (count + 1) * 3 * (16 + 32 + 64) * 16 / 1e6
    assert (
        message == f"Class selectivity: {count} classes, {size:.1f} MB of statistics on the device."
    )


def test_the_logged_memory_is_that_of_the_statistics(tmp_path):
    sizes = {}
    for count in (2, 8):
        callback = ClassSelectivity(count)

        class Spy(LightningModule):
            def on_validation_start(self, callback=callback, count=count):
                sizes[count] = callback._recorder.statistics.nbytes

        model = type("Module", (Spy, ImageClassifier), {})(small().backbone, 10)
        trainer(tmp_path, callback).validate(model, loader([0, 1]), verbose=False)
    # 16 bytes per channel and class, and 8 for the number of samples per class and layer.
    assert sizes[8] - sizes[2] == 6 * (5 * 16 + 8)


def test_gates_that_never_vary_have_nan_and_give_no_warning(tmp_path, recwarn):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    for module in model.modules():
        if isinstance(module, SqueezeExcitation):
            nn.init.zeros_(module.fc2.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer(tmp_path, ClassSelectivity()).validate(model, DigitsDataModule(), verbose=False)
    assert np.isnan(arrays(tmp_path, "selectivity_validate")["values"]).all()
    assert (tmp_path / "excitation" / "selectivity.png").exists()


def test_samples_of_a_single_class_give_one_warning(tmp_path, caplog):
    fitted = trainer(tmp_path, ClassSelectivity(), max_epochs=2, num_sanity_val_steps=0)
    fitted.fit(small(), loader([1, 2]), loader([3] * 5))
    messages = [record.getMessage() for record in caplog.records if record.name == HOME]
    assert [each for each in messages if "validation batches have 1." in each] == messages[-1:]
    assert np.isnan(arrays(tmp_path)["values"]).all()


class Foreign(LightningModule):
    """A foreign module without a datamodule; the number of classes is unknown."""

    def __init__(self):
        super().__init__()
        self.net = small(4).backbone

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_foreign_run_without_num_classes_trains_without_selectivity(tmp_path, caplog):
    fitted = trainer(tmp_path, ClassSelectivity(), max_epochs=1)
    with caplog.at_level("INFO", logger=HOME):
        fitted.fit(Foreign(), loader([0, 1, 2, 3] * 2), loader([0, 1, 2, 3]))
    (message,) = [record.getMessage() for record in caplog.records if record.name == HOME]
    assert message.startswith("No class selectivity, since neither the module nor the datamodule")
    assert not (tmp_path / "excitation").exists()


def test_a_foreign_run_with_given_labels_has_selectivity(tmp_path):
    fitted = trainer(tmp_path, ClassSelectivity([0, 3]), max_epochs=1)
    fitted.fit(Foreign(), loader([0, 1, 2, 3] * 2), loader([0, 1, 2, 3] * 3))
    assert np.isfinite(arrays(tmp_path)["values"]).all()


def test_all_classes_of_an_unknown_number_are_refused(tmp_path):
    fitted = trainer(tmp_path, ClassSelectivity("all"), max_epochs=1)
    with pytest.raises(ValueError, match=r"`classes` \(=all\) needs a module"):
        fitted.fit(Foreign(), loader([0, 1]), loader([0, 1]))


@pytest.mark.parametrize("classes", [1, 0, -3, "cat", [], [4]])
def test_fewer_than_two_classes_are_refused(classes):
    with pytest.raises(ValueError, match="`classes`"):
        ClassSelectivity(classes)


def test_a_class_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no class 12"):
        trainer(tmp_path, ClassSelectivity([1, 12])).validate(
            SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule(), verbose=False
        )


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_last=True, monitor=None)
    train, val = loader([0, 1, 2, 3] * 2), loader([0, 1, 2, 3] * 3)
    model = small()
    trainer(tmp_path, ClassSelectivity(), saving, max_epochs=2).fit(model, train, val)
    first = arrays(tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ClassSelectivity"]
    assert state["values"]["values"].shape == (2, 1)
    more = trainer(tmp_path, ClassSelectivity(), saving, max_epochs=3)
    more.fit(model, train, val, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert arrays(tmp_path)["epochs"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(arrays(tmp_path)["values"][:2], first["values"])


def test_a_network_without_gates_trains(tmp_path, caplog):
    model = SEResNetModule(20, gate="none", in_channels=1)
    fitted = trainer(tmp_path, ClassSelectivity(), max_epochs=1, limit_train_batches=1)
    with caplog.at_level("INFO", logger=HOME):
        fitted.fit(model, DigitsDataModule())
    assert not [record for record in caplog.records if record.name == HOME]
    assert not (tmp_path / "excitation").exists()
