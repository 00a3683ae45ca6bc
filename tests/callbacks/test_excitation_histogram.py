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
from torch import nn

from se_lightning import DigitsDataModule, ExcitationHistogram, ImageClassifier, SEResNetModule
from se_lightning.loggers import GracefulWandbLogger, finish_wandb
from se_lightning.models import SqueezeExcitation


def trainer(folder, callback, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "callbacks": [callback]}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = False
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def gates_by_hand(model, data):
    """Capture every gate of a separate forward pass over the validation set."""
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


def test_wandbs_file_holds_the_histograms_that_histc_counts_by_hand(tmp_path, wandb_history):
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


def test_nothing_is_counted_in_training_or_in_the_sanity_check(tmp_path):
    counted = []

    class Spy(ExcitationHistogram):
        def _record(self, layer, gate, inputs, output):
            super()._record(layer, gate, inputs, output)
            if self._recording:
                counted.append(gate.training)

        def on_sanity_check_end(self, trainer, pl_module):
            assert not self._histogram.counts.any()

    model = SEResNetModule(20, ratio=4, in_channels=1)
    data = DigitsDataModule(eval_batch_size=90)
    trainer(tmp_path, Spy(), limit_train_batches=3).fit(model, datamodule=data)
    assert counted == [False] * 9 * 2


def test_a_second_epoch_forgets_the_first(tmp_path):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    totals = []

    class Spy(ExcitationHistogram):
        def _send(self, trainer, counts):
            totals.append(counts.sum().item())

    fitted = trainer(tmp_path, Spy(), max_epochs=3, limit_train_batches=1)
    fitted.fit(model, datamodule=DigitsDataModule())
    assert totals == [180 * 3 * (16 + 32 + 64)] * 3


def test_hooks_are_gone_after_the_run(tmp_path):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    fitted = trainer(tmp_path, ExcitationHistogram(), limit_train_batches=1)
    fitted.fit(model, datamodule=DigitsDataModule())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_after_one_that_broke_counts_once(tmp_path):
    class Breaks(SEResNetModule):
        broken = True

        def on_validation_batch_end(self, *_):
            if self.broken and not self.trainer.sanity_checking:
                raise RuntimeError("broken")

    totals = []

    class Spy(ExcitationHistogram):
        def _send(self, trainer, counts):
            totals.append(counts.sum().item())

    model, spy = Breaks(20, ratio=4, in_channels=1), Spy()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, spy, limit_train_batches=1).fit(model, datamodule=DigitsDataModule())
    model.train().broken = False
    trainer(tmp_path, spy, limit_train_batches=1).fit(model, datamodule=DigitsDataModule())
    assert totals == [180 * 3 * (16 + 32 + 64)]


def test_it_sees_timms_gates_in_any_lightning_module(tmp_path):
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
    assert callback._counts is None
    assert callback.picture.exists()
    assert "NaN" not in caplog.text


def test_a_net_without_gates_is_told_and_trains(tmp_path, caplog):
    model = SEResNetModule(20, gate="none", in_channels=1)
    callback = ExcitationHistogram()
    with caplog.at_level("INFO"):
        trainer(tmp_path, callback, limit_train_batches=1).fit(model, datamodule=DigitsDataModule())
    assert "No squeeze-and-excitation gates" in caplog.text
    assert callback.picture is None


def test_nan_gates_are_told(tmp_path, caplog):
    model = SEResNetModule(20, ratio=4, in_channels=1)
    model.backbone.layer2[0].se.fc2.bias.data.fill_(float("nan"))
    trainer(tmp_path, ExcitationHistogram()).validate(model, DigitsDataModule(), verbose=False)
    assert f"backbone.layer2.0.se: {180 * 32} gates are NaN, 0 outside" in caplog.text


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

    def _send(self, trainer, counts):
        self.kept.append(counts.tolist())

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
    few = MNISTDataModule("mnist", root, val_size=1)  # rank 1 has none
    (one,) = trainer.validate(model, few, verbose=False)
    if trainer.is_global_zero:
        result = {"world": trainer.world_size, "val": val, "test": test, "one": one}
        result["bins"], result["bins of one"] = keep.kept
        open(f"{folder}/{devices}.json", "w").write(json.dumps(result))
"""


def test_two_ranks_count_what_one_process_counts(tmp_path, idx_root):
    """101 test and 21 validation images: neither divides among ranks; no sample is padded."""
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
    # A gate next to an edge may fall to its other side: batches differ, and so does rounding.
    assert np.abs(np.subtract(one["bins"], two["bins"])).sum() <= 4
    assert np.sum(one["bins"]) == np.sum(two["bins"])
    assert np.sum(one["bins of one"]) == np.sum(two["bins of one"]) == 3 * (16 + 32 + 64)
    for split in ("val", "test", "one"):
        assert one[split].keys() == two[split].keys()
        for name, value in one[split].items():
            tolerance = 1e-5 if name.endswith("loss") else 0
            assert two[split][name] == pytest.approx(value, abs=tolerance)


def test_gates_that_enlarge_are_counted_up_to_two(tmp_path, caplog):
    model = SEResNetModule(20, ratio=4, in_channels=1, gate_activation="double-sigmoid")
    callback = ExcitationHistogram(bins=4)
    seen = []
    send = callback._send
    callback._send = lambda trainer, counts: (seen.append(counts.clone()), send(trainer, counts))
    fitted = trainer(tmp_path, callback, limit_train_batches=1, limit_val_batches=1)
    torch.nn.init.constant_(model.backbone.layer1[0].se.fc2.bias, 40.0)  # a gate of exactly 2
    fitted.validate(model, datamodule=DigitsDataModule(batch_size=8))
    (counts,) = seen
    assert counts[0].tolist() == [0, 0, 0, counts[0].sum()]
    assert counts[1].tolist() == [0, 0, counts[1].sum(), 0]  # of exactly 1
    assert "outside" not in caplog.text
    assert (tmp_path / "excitation" / "histogram.png").exists()
