import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from se_lightning import DigitsDataModule, GateDoctor, ImageClassifier, SEResNetModule
from se_lightning.callbacks.excitation.base import (
    ExcitationCallback,
    Wanted,
    _own_samples,
    class_labels,
)
from se_lightning.excitation import ExcitationStatistics
from se_lightning.models import SqueezeExcitation, se_resnet20


class Keep(ExcitationCallback):
    def __init__(self, *classes):
        self.classes, self.summaries, self.last = classes, [], []

    def wanted(self, trainer, pl_module):
        return Wanted(classes=self.classes, hidden=True)

    def on_summary(self, trainer, summary):
        self.summaries.append(summary)

    def on_last_summary(self, trainer, summary):
        self.last.append(summary)


def quiet(folder, *callbacks, **options):
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "max_epochs": 1, **options},
    )


class Captures(SEResNetModule):
    """Records the gates and labels of each validation batch with separate hooks."""

    def __init__(self, **options):
        super().__init__(20, ratio=4, in_channels=1, **options)
        self.seen, self.labels = {}, []
        for path, module in self.named_modules():
            if path.endswith(".se"):
                module.gate.register_forward_hook(self._keep(path))

    def _keep(self, path):
        seen = self.seen[path] = []
        return lambda module, inputs, output: seen.append(output.detach().float().flatten(1))

    def validation_step(self, batch, batch_idx):
        self.labels.append(batch[1])
        super().validation_step(batch, batch_idx)


def by_hand(model):
    labels = torch.cat(model.labels).numpy()
    return {path: torch.cat(seen).numpy() for path, seen in model.seen.items()}, labels


def check(summary, model):
    gates, labels = by_hand(model)
    assert list(summary.layers) == list(gates)
    for layer, values in enumerate(gates.values()):
        assert len(values) == 180
        here = summary.of(layer)
        counts = np.histogram(values.astype(np.float64), 64, (0, 1))[0]
        assert summary.histogram()[layer].tolist() == [*counts, 0, 0]
        exact = values.astype(np.float64)
        np.testing.assert_allclose(summary.mean()[here], exact.mean(0), atol=1e-12)
        np.testing.assert_allclose(summary.std()[here], exact.std(0), atol=1e-9)
        for label in summary.classes:
            of_class = exact[labels == label].mean(0)
            np.testing.assert_allclose(summary.mean(label)[here], of_class, atol=1e-12)


@pytest.mark.parametrize(
    "mode",
    ["eager", "bf16", "compiled", pytest.param("compiled module", marks=pytest.mark.slow)],
)
def test_a_summary_equals_the_gates_recorded_by_hand_in_the_same_mode(tmp_path, mode):
    torch._dynamo.reset()
    model, keep = Captures(), Keep(0, 7)
    if mode == "compiled":
        model.backbone.compile(backend="aot_eager")
    given = torch.compile(model, backend="aot_eager") if mode == "compiled module" else model
    precision = "bf16-mixed" if mode == "bf16" else "32-true"
    data = DigitsDataModule(eval_batch_size=60)
    quiet(tmp_path, keep, precision=precision).validate(given, data, verbose=False)
    check(keep.summaries[0], model)
    assert keep.last == keep.summaries == [keep.summary]
    torch._dynamo.reset()


def test_validations_do_not_affect_each_other(tmp_path):
    model, keep = Captures(), Keep(0)
    fitted = quiet(tmp_path, keep, max_epochs=2, limit_train_batches=2)
    fitted.fit(model, datamodule=DigitsDataModule(eval_batch_size=90))
    epochs = [summary.histogram()[:, :64].sum() for summary in keep.summaries]
    assert epochs == [180 * 3 * (16 + 32 + 64)] * 2
    assert keep.last == keep.summaries[-1:]
    for seen in [*model.seen.values(), model.labels]:
        del seen[:]
    fitted.validate(model, DigitsDataModule(eval_batch_size=90), verbose=False)
    check(keep.summary, model)


def test_nothing_is_recorded_in_training_or_in_the_sanity_check(tmp_path, monkeypatch):
    added = []
    update = ExcitationStatistics.update
    monkeypatch.setattr(
        ExcitationStatistics,
        "update",
        lambda self, gates, *rest: added.append(len(gates[0])) or update(self, gates, *rest),
    )

    class Looks(SEResNetModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            assert self.backbone.layer1[0].se.gate._tapped is None
            return loss

    model = Looks(20, ratio=4, in_channels=1)
    fitted = quiet(tmp_path, Keep(), max_epochs=2, limit_train_batches=3)
    fitted.fit(model, datamodule=DigitsDataModule(eval_batch_size=90))
    assert added == [1] * 2 * 2  # one call per gate in two batches of two epochs


def test_callbacks_share_one_recorder(tmp_path, monkeypatch):
    made = []
    init = ExcitationStatistics.__init__
    monkeypatch.setattr(
        ExcitationStatistics,
        "__init__",
        lambda self, *a, **k: made.append(k["classes"]) or init(self, *a, **k),
    )
    one, two = Keep(3, 1), Keep(7)
    quiet(tmp_path, one, two).validate(Captures(), DigitsDataModule(), verbose=False)
    assert made == [[1, 3, 7]]
    assert one.summary is two.summary


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((torch.zeros(2, 1), torch.tensor([1, 2])), [1, 2]),
        ([torch.zeros(2, 1), torch.tensor([1, 2], dtype=torch.int32)], [1, 2]),
        ({"image": torch.zeros(2, 1), "label": torch.tensor([3, 0])}, [3, 0]),
        (torch.zeros(2, 1), None),
        ((torch.zeros(2, 1), torch.zeros(2, 5)), None),
        ((torch.zeros(2, 1), torch.zeros(2)), None),
        (({"a": 1}, "b"), None),
    ],
)
def test_labels_are_found_in_common_kinds_of_batches(batch, labels):
    found = class_labels(batch)
    assert (None if found is None else found.tolist()) == labels


class NeverExecuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = se_resnet20(ratio=4, in_channels=1)
        self.se = SqueezeExcitation(16, 4)  # as in a known port: registered, but not in forward

    def forward(self, x):
        return self.net(x)


def test_a_gate_that_is_never_executed_gives_a_warning(tmp_path, caplog):
    model = ImageClassifier(NeverExecuted(), 10)
    quiet(tmp_path, Keep()).validate(model, DigitsDataModule(), verbose=False)
    assert "No gates recorded for backbone.se" in caplog.text


@pytest.mark.parametrize("doctor", [False, True])
def test_nan_gates_give_one_warning_also_with_a_doctor(tmp_path, caplog, doctor):
    """The NaN appear in the second epoch. A gate doctor replaces the recorder's warning."""

    class Breaks(SEResNetModule):
        def on_validation_epoch_start(self):
            if self.current_epoch == 1:
                self.backbone.layer2[0].se.fc2.bias.data.fill_(float("nan"))

    callbacks = [Keep(), GateDoctor()] if doctor else [Keep()]
    model = Breaks(20, ratio=4, in_channels=1)
    fitted = quiet(tmp_path, *callbacks, max_epochs=3, limit_train_batches=1)
    fitted.fit(model, datamodule=DigitsDataModule(eval_batch_size=90))
    messages = [record.getMessage() for record in caplog.records]
    warnings = [text for text in messages if "layer2.0.se: 5760 gates are NaN" in text]
    assert len(warnings) == 1
    assert ("check for a learning rate" in warnings[0]) == doctor


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [22, 23, 24, 2])
def test_padding_of_a_distributed_sampler_is_left_out(size, shuffle):
    seen = []
    for rank in range(3):
        sampler = DistributedSampler(range(size), 3, rank, shuffle=shuffle)
        own = _own_samples(DataLoader(range(size), batch_size=4, sampler=sampler))
        seen += list(sampler)[:own]
    assert sorted(seen) == list(range(size))


RANKS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset
from se_lightning import MNISTDataModule, SEResNetModule
from se_lightning.callbacks.excitation.base import ExcitationCallback, Wanted
from se_lightning.models import SqueezeExcitation, find_gates

SIZE = 23

class Keep(ExcitationCallback):
    def wanted(self, trainer, pl_module):
        return Wanted(classes=(0, 1, 2), hidden=True)

class Pairs(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        image = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": index % 3}

class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(SqueezeExcitation(2, 1), nn.Flatten(), nn.Linear(18, 3))

    def validation_step(self, batch, batch_idx):
        self.net(batch["image"])

if __name__ == "__main__":
    root, folder, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Check(Keep):
        # Checked within the ranks, since forks do not share memory.
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.seen, self.labels = {}, []
            self.hooks = [
                gate.register_forward_hook(
                    lambda m, i, o, path=path: self.seen.setdefault(path, []).append(o)
                )
                for path, gate in find_gates(pl_module).items()
            ]

        def on_validation_batch_start(self, trainer, pl_module, batch, *rest):
            super().on_validation_batch_start(trainer, pl_module, batch, *rest)
            self.labels.append(batch["label"] if isinstance(batch, dict) else batch[1])

        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            gates = torch.cat([torch.cat(calls).flatten(1) for calls in self.seen.values()], 1)
            mine = (gates, torch.cat(self.labels))
            parts = [mine]
            if trainer.world_size > 1:
                parts = [None] * trainer.world_size
                torch.distributed.all_gather_object(parts, mine)
            if trainer.is_global_zero:
                sizes = [len(range(rank, SIZE, trainer.world_size)) for rank in range(len(parts))]
                padded = sum(len(part[0]) for part in parts)
                values = torch.cat([g[:n] for (g, _), n in zip(parts, sizes)]).double().numpy()
                labels = torch.cat([l[:n] for (_, l), n in zip(parts, sizes)]).numpy()
                summary = self.summary
                counts = [np.histogram(column, 64, (0, 1))[0].tolist() for column in values.T]
                assert summary.counts[:, :64].tolist() == counts
                assert not summary.counts[:, 64:].any()
                np.testing.assert_allclose(summary.mean(), values.mean(0), atol=1e-12)
                np.testing.assert_allclose(summary.std(), values.std(0), atol=1e-9)
                known = np.isin(labels, (0, 1, 2))
                values, labels = values[known], labels[known]
                there = set(labels)
                assert len(there) > 1
                for label in there:
                    theirs = values[labels == label].mean(0)
                    np.testing.assert_allclose(summary.mean(label), theirs, atol=1e-12)
                for layer in range(len(summary.layers)):
                    x = values[:, summary.of(layer)]
                    centre = x.mean(0)
                    between = sum(
                        (labels == k).sum() * (x[labels == k].mean(0) - centre) ** 2 for k in there
                    )
                    share = between.sum() / ((x - centre) ** 2).sum()
                    assert abs(summary.selectivity()[layer] - share) < 1e-9
                counted = int(summary.samples[:, 0].sum())
                found = {"world": trainer.world_size, "ran": padded, "counted": counted}
                with open(f"{folder}/{devices}.jsonl", "a") as file:
                    file.write(json.dumps(found) + "\\n")

    def validate(model, *args, **kwargs):
        trainer = Trainer(
            devices=devices, accelerator="cpu", strategy="ddp_fork" if devices > 1 else "auto",
            default_root_dir=folder, logger=False, callbacks=[Check()], enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )
        trainer.validate(model, *args, verbose=False, **kwargs)

    seed_everything(0, verbose=False)
    ours = SEResNetModule(20, ratio=4, in_channels=1)
    validate(ours, MNISTDataModule("mnist", root, val_size=SIZE, eval_batch_size=4))
    validate(Foreign(), DataLoader(Pairs(), batch_size=4))
"""


@pytest.mark.parametrize("devices", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_sample_counts_once_on_uneven_shards(tmp_path, idx_root, devices):
    """23 samples; our datamodule shards without padding, a foreign loader with padding."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script), str(idx_root), str(tmp_path), str(devices)]
    done = subprocess.run(command, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / f"{devices}.jsonl").read_text().splitlines()
    ours, foreign = map(json.loads, lines)
    assert ours["world"] == foreign["world"] == devices
    assert ours["ran"] == ours["counted"] == foreign["counted"] == 23
    assert foreign["ran"] == {1: 23, 2: 24, 3: 24}[devices]
