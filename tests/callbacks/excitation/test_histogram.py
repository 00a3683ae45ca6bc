import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import wandb
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from se_lightning import DigitsDataModule, ExcitationHistogram, ImageClassifier, SEResNetModule
from se_lightning.loggers import GracefulWandbLogger, finish_wandb
from se_lightning.models import SqueezeExcitation


def trainer(folder, *callbacks, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    quiet["callbacks"] = list(callbacks)
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def gates_by_hand(model, data):
    """Return every gate of a separate forward pass over the validation set."""
    gates = {}
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.endswith(".se"):
                module.gate.register_forward_hook(
                    lambda m, i, o, path=path: gates.setdefault(path, []).append(o)
                )
        model.eval()
        for images, _ in data.val_dataloader():
            model(images)
    return {path: torch.cat(values) for path, values in gates.items()}


def arrays(folder, name="histogram"):
    with np.load(folder / "excitation" / f"{name}.npz") as file:
        return dict(file)


def test_wandb_histograms_equal_histc(tmp_path, wandb_history):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    data = DigitsDataModule(batch_size=64, eval_batch_size=50)
    logger = GracefulWandbLogger(save_dir=str(tmp_path))
    callback = ExcitationHistogram()
    fitted = trainer(tmp_path, callback, logger=logger, max_epochs=2, limit_train_batches=6)
    fitted.fit(model, datamodule=data)
    finish_wandb(failed=False)
    wandb.teardown()  # its service may still be writing the last rows

    rows = [
        row for row in wandb_history(tmp_path) if "excitation/backbone.layer1.0.se._type" in row
    ]
    assert [row["trainer/global_step"] for row in rows] == [6, 12]  # none of the sanity check
    gates = gates_by_hand(model, data)
    assert len(gates) == 9
    for path, values in gates.items():
        assert rows[-1][f"excitation/{path}._type"] == "histogram"
        counts = rows[-1][f"excitation/{path}.values"]
        assert sum(counts) == 180 * model.get_submodule(path).fc2.out_channels
        assert counts == torch.histc(values, 64, 0, 1).tolist()
        np.testing.assert_allclose(rows[-1][f"excitation/{path}.bins"], np.linspace(0, 1, 65))
    picture = tmp_path / "excitation" / "histogram.png"
    assert callback.picture == picture
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert any("excitation/histogram._type" in row for row in wandb_history(tmp_path))


def test_the_file_has_all_epochs_as_counted_by_hand(tmp_path):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    data = DigitsDataModule(eval_batch_size=90)
    fitted = trainer(tmp_path, ExcitationHistogram(32), max_epochs=2, limit_train_batches=2)
    fitted.fit(model, datamodule=data)
    gates = gates_by_hand(model, data)
    found = arrays(tmp_path)
    assert found["epochs"].tolist() == [1, 2]
    assert found["steps"].tolist() == [2, 4]
    assert found["layers"].tolist() == list(gates)
    np.testing.assert_allclose(found["edges"], np.linspace(0, 1, 33))
    assert found["counts"].shape == (2, 9, 34)
    last = [[*torch.histc(each, 32, 0, 1).tolist(), 0, 0] for each in gates.values()]
    assert found["counts"][1].tolist() == last
    by_hand = [each.double().mean().item() for each in gates.values()]
    np.testing.assert_allclose(found["means"][1], by_hand, rtol=1e-6)
    assert not np.array_equal(found["counts"][0], found["counts"][1])
    assert (tmp_path / "excitation" / "epochs.png").exists()


def test_a_single_epoch_has_no_heat_map(tmp_path):
    fitted = trainer(tmp_path, ExcitationHistogram(), limit_train_batches=1)
    fitted.fit(SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule())
    assert (tmp_path / "excitation" / "histogram.png").exists()
    assert not (tmp_path / "excitation" / "epochs.png").exists()


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path):
    def run(folder, epochs, ckpt_path=None):
        torch.manual_seed(0)
        model = SEResNetModule(20, ratio=4, in_channels=1)
        saving = ModelCheckpoint(folder, save_last=True, monitor=None)
        fitted = trainer(
            folder, ExcitationHistogram(), saving, max_epochs=epochs, limit_train_batches=2
        )
        fitted.fit(model, DigitsDataModule(), ckpt_path=ckpt_path, weights_only=True)
        return arrays(folder)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "broken", 2)
    resumed = run(tmp_path / "broken", 3, tmp_path / "broken" / "last.ckpt")
    assert resumed.keys() == whole.keys()
    for name, expected in whole.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(resumed[name], expected)
        else:
            np.testing.assert_array_equal(resumed[name], expected)
    assert whole["epochs"].tolist() == [1, 2, 3]


def test_a_run_resumed_with_other_bins_discards_the_history(tmp_path, caplog):
    saving = ModelCheckpoint(tmp_path, save_last=True, monitor=None)
    data, model = DigitsDataModule(), SEResNetModule(20, ratio=4, in_channels=1)
    trainer(tmp_path, ExcitationHistogram(8), saving, limit_train_batches=1).fit(model, data)
    other = ExcitationHistogram(16)
    more = trainer(tmp_path, other, saving, max_epochs=2, limit_train_batches=1)
    with caplog.at_level("INFO"):
        more.fit(model, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert "Discarding earlier validations, which had other edges" in caplog.text
    assert arrays(tmp_path)["epochs"].tolist() == [2]
    assert arrays(tmp_path)["counts"].shape == (1, 9, 18)


def test_a_new_fit_starts_with_an_empty_history(tmp_path):
    callback = ExcitationHistogram()
    for _ in range(2):
        fitted = trainer(tmp_path, callback, max_epochs=2, limit_train_batches=1)
        fitted.fit(SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule())
        assert arrays(tmp_path)["epochs"].tolist() == [1, 2]


def test_a_trainer_that_continues_training_keeps_its_history(tmp_path):
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule()
    fitted = trainer(tmp_path, ExcitationHistogram(), limit_train_batches=1)
    fitted.fit(model, data)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(model, data)
    assert arrays(tmp_path)["epochs"].tolist() == [1, 2]


def test_a_validation_does_not_add_to_the_history_of_a_fit(tmp_path):
    callback = ExcitationHistogram()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", monitor=None, save_top_k=-1)
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule()
    options = {"max_epochs": 2, "limit_train_batches": 1, "inference_mode": False}
    fitted = trainer(tmp_path, callback, saving, **options)
    fitted.validate(model, data, verbose=False)
    assert not (tmp_path / "excitation" / "histogram.npz").exists()
    fitted.fit(model, data)
    before = (tmp_path / "excitation" / "histogram.npz").read_bytes()
    assert arrays(tmp_path)["epochs"].tolist() == [1, 2]

    def validated(ckpt_path):
        fitted.validate(model, data, ckpt_path=ckpt_path, verbose=False)
        assert (tmp_path / "excitation" / "histogram.npz").read_bytes() == before
        assert len(callback.history) == 2
        return arrays(tmp_path, "histogram_validate")

    last, first = validated(None), validated(tmp_path / "epoch=0.ckpt")
    assert last["epochs"].tolist() == [2]
    assert np.isnan(first["epochs"]).tolist() == [True]  # unknown
    np.testing.assert_array_equal(first["counts"][0], arrays(tmp_path)["counts"][0])
    np.testing.assert_array_equal(last["counts"][0], arrays(tmp_path)["counts"][1])


def test_validations_within_an_epoch_have_fractional_epochs(tmp_path):
    fitted = trainer(
        tmp_path, ExcitationHistogram(), max_epochs=2, limit_train_batches=4, val_check_interval=2
    )
    fitted.fit(SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule())
    assert arrays(tmp_path)["epochs"].tolist() == [0.5, 1, 1.5, 2]
    assert arrays(tmp_path)["steps"].tolist() == [2, 4, 6, 8]


def test_the_title_identifies_the_weights(tmp_path, monkeypatch):
    titles = []

    def draw(layers, counts, title, lower, upper):
        titles.append(title)
        return real(layers, counts, title, lower, upper)

    from se_lightning.callbacks.excitation import histogram as home

    real = home.draw_histogram
    monkeypatch.setattr(home, "draw_histogram", draw)
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule()
    saving = ModelCheckpoint(tmp_path, filename="kept", monitor=None)
    options = {"max_epochs": 2, "limit_train_batches": 1, "inference_mode": False}
    fitted = trainer(tmp_path, ExcitationHistogram(), saving, **options)
    fitted.validate(model, data, verbose=False)
    fitted.fit(model, data)
    fitted.validate(model, data, verbose=False)
    fitted.validate(model, data, ckpt_path=tmp_path / "kept.ckpt", verbose=False)
    fitted.validate(model, data, verbose=False)
    ends = [title.removeprefix("Excitations on the validation set") for title in titles]
    assert ends == ["", ", after 2 epochs", ", after 2 epochs", ", kept.ckpt", ", after 2 epochs"]


def test_nothing_is_counted_in_training_or_in_the_sanity_check(tmp_path):
    counted = []

    class Spy(ExcitationHistogram):
        def on_sanity_check_end(self, trainer, pl_module):
            assert not self._recorder.statistics.totals.any()

        def on_train_batch_end(self, trainer, *_):
            assert not self._recorder.statistics.totals.any()

        def on_validation_batch_end(self, trainer, *arguments):
            super().on_validation_batch_end(trainer, *arguments)
            if not trainer.sanity_checking:
                counted.append(self._recorder.statistics.totals[:2000].sum().item())

    model = SEResNetModule(20, ratio=4, in_channels=1)
    data = DigitsDataModule(eval_batch_size=90)
    trainer(tmp_path, Spy(), limit_train_batches=3).fit(model, datamodule=data)
    assert len(counted) == 2
    assert 0 < counted[0] < counted[1]


def test_counts_are_reset_in_each_epoch(tmp_path):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    fitted = trainer(tmp_path, ExcitationHistogram(), max_epochs=3, limit_train_batches=1)
    fitted.fit(model, datamodule=DigitsDataModule())
    totals = arrays(tmp_path)["counts"].sum(axis=(1, 2))
    assert totals.tolist() == [180 * 3 * (16 + 32 + 64)] * 3


def test_hooks_are_removed_after_the_run(tmp_path):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    fitted = trainer(tmp_path, ExcitationHistogram(), limit_train_batches=1)
    fitted.fit(model, datamodule=DigitsDataModule())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_after_a_failed_one_counts_once(tmp_path):
    class Breaks(SEResNetModule):
        broken = True

        def on_validation_batch_end(self, *_):
            if self.broken and not self.trainer.sanity_checking:
                raise RuntimeError("broken")

    model, callback = Breaks(20, ratio=4, in_channels=1), ExcitationHistogram()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callback, limit_train_batches=1).fit(model, DigitsDataModule())
    model.train().broken = False
    trainer(tmp_path, callback, limit_train_batches=1).fit(model, DigitsDataModule())
    totals = arrays(tmp_path)["counts"].sum(axis=(1, 2))
    assert totals.tolist() == [180 * 3 * (16 + 32 + 64)]


def test_gates_of_timm_are_recorded_in_any_lightning_module(tmp_path):
    net = timm.create_model("seresnet18", num_classes=10, in_chans=1)
    callback = ExcitationHistogram()
    fitted = trainer(tmp_path, callback, limit_val_batches=1)
    fitted.validate(ImageClassifier(net, 10), DigitsDataModule(eval_batch_size=8), verbose=False)
    assert callback.picture.exists()


def test_a_single_gate_is_enough(tmp_path, caplog):
    net = nn.Sequential(SqueezeExcitation(1, 1), nn.Flatten(), nn.Linear(1024, 10))
    callback = ExcitationHistogram(bins=1)
    trainer(tmp_path, callback).validate(
        ImageClassifier(net, 10), DigitsDataModule(), verbose=False
    )
    assert callback.picture.exists()
    assert "NaN" not in caplog.text


def test_a_network_without_gates_gives_a_message_and_trains(tmp_path, caplog):
    model = SEResNetModule(20, gate="none", in_channels=1)
    callback = ExcitationHistogram()
    with caplog.at_level("WARNING"):
        trainer(tmp_path, callback, limit_train_batches=1).fit(model, datamodule=DigitsDataModule())
    assert "No squeeze-and-excitation gates" in caplog.text
    assert callback.picture is None
    assert not (tmp_path / "excitation").exists()


def test_nan_gates_give_a_warning(tmp_path, caplog):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    model.backbone.layer2[0].se.fc2.bias.data.fill_(float("nan"))
    trainer(tmp_path, ExcitationHistogram()).validate(model, DigitsDataModule(), verbose=False)
    assert f"backbone.layer2.0.se: {180 * 32} gates are NaN, 0 outside" in caplog.text
    assert arrays(tmp_path, "histogram_validate")["counts"][0, 3, 64] == 180 * 32


@pytest.mark.parametrize("bins", [0, 513])
def test_bins_that_wandb_cannot_draw_are_refused(bins):
    with pytest.raises(ValueError, match="`bins`"):
        ExcitationHistogram(bins)


RANKS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from pytorch_lightning import Trainer, seed_everything
from se_lightning import ExcitationHistogram, MNISTDataModule, SEResNetModule

class Keep(ExcitationHistogram):
    kept = []

    def on_summary(self, trainer, summary):
        super().on_summary(trainer, summary)
        self.kept.append(summary.histogram().tolist())

if __name__ == "__main__":
    root, folder, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seed_everything(0, verbose=False)
    model = SEResNetModule(20, ratio=4, in_channels=1)
    data = MNISTDataModule("mnist", root, val_size=21, eval_batch_size=4)
    keep = Keep()
    trainer = Trainer(
        devices=devices, accelerator="cpu", strategy="ddp" if devices > 1 else "auto",
        default_root_dir=folder, logger=False, callbacks=[keep], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )
    (val,) = trainer.validate(model, data, verbose=False)
    (test,) = trainer.test(model, data, verbose=False)
    few = MNISTDataModule("mnist", root, val_size=1)  # none on rank 1
    (one,) = trainer.validate(model, few, verbose=False)
    if trainer.is_global_zero:
        result = {"world": trainer.world_size, "val": val, "test": test, "one": one}
        result["bins"], result["bins of one"] = keep.kept
        open(f"{folder}/{devices}.json", "w").write(json.dumps(result))
    else:
        assert not keep.kept
"""


def test_two_ranks_count_what_one_process_counts(tmp_path, idx_root):
    """101 test and 21 validation images, both odd; no sample is padded."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    found = {}
    for devices in (1, 2):
        command = [sys.executable, str(script), str(idx_root), str(tmp_path), str(devices)]
        subprocess.run(command, check=True, timeout=200, capture_output=True)
        found[devices] = json.loads(Path(tmp_path, f"{devices}.json").read_text())
    one, two = found[1], found[2]
    assert (one["world"], two["world"]) == (1, 2)
    assert np.sum(one["bins"]) == 21 * 3 * (16 + 32 + 64)
    # Batches and so rounding differ: a gate at the edge of a bin may fall on its other side.
    assert np.abs(np.subtract(one["bins"], two["bins"])).sum() <= 4
    assert np.sum(one["bins"]) == np.sum(two["bins"])
    assert np.sum(one["bins of one"]) == np.sum(two["bins of one"]) == 3 * (16 + 32 + 64)
    for split in ("val", "test", "one"):
        assert one[split].keys() == two[split].keys()
        for name, value in one[split].items():
            tolerance = 1e-5 if name.endswith("loss") else 0
            assert two[split][name] == pytest.approx(value, abs=tolerance)


def test_gates_above_1_are_counted_up_to_2(tmp_path, caplog):
    model = SEResNetModule(20, ratio=4, in_channels=1, gate_activation="double-sigmoid")
    fitted = trainer(
        tmp_path, ExcitationHistogram(bins=4), limit_train_batches=1, limit_val_batches=1
    )
    torch.nn.init.constant_(model.backbone.layer1[0].se.fc2.bias, 40.0)  # exactly 2
    fitted.validate(model, datamodule=DigitsDataModule(batch_size=8))
    found = arrays(tmp_path, "histogram_validate")
    np.testing.assert_array_equal(found["edges"], [0, 0.5, 1, 1.5, 2])
    (counts,) = found["counts"]
    assert counts[0].tolist() == [0, 0, 0, counts[0].sum(), 0, 0]
    assert counts[1].tolist() == [0, 0, counts[1].sum(), 0, 0, 0]  # exactly 1
    assert "outside" not in caplog.text
    assert (tmp_path / "excitation" / "histogram.png").exists()
