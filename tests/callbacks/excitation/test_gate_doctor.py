import csv
import logging
import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from se_lightning import DigitsDataModule, GateDoctor, ImageClassifier, SEResNetModule
from se_lightning.callbacks.excitation import gate_doctor
from se_lightning.models import SqueezeExcitation


def trainer(folder, doctor, **options):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "callbacks": [doctor]}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = False
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


class Net(nn.Module):
    """Two gates, neither of which is trained."""

    def __init__(self, ill=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, stride=4)
        self.well, self.ill = SqueezeExcitation(8, 2), SqueezeExcitation(8, 2)
        self.fc = nn.Linear(8, 10)
        self.conv.requires_grad_(False)  # NaN would come back to it
        for se in (self.well, self.ill):
            nn.init.kaiming_normal_(se.fc1.weight)
            nn.init.constant_(se.fc1.bias, 0.5)
            se.requires_grad_(False)
        self.called = ill != "unseen"
        with torch.no_grad():
            if ill == "identity":
                self.ill.fc2.bias += 20
            elif ill == "constant":
                self.ill.fc2.weight.zero_()
            elif ill == "nan":
                self.ill.fc2.bias[0] = math.nan
            elif ill == "dead":
                self.ill.fc1.bias[1] = -1000

    def forward(self, x):
        x = self.well(self.conv(x))
        x = self.ill(x) if self.called else x
        return self.fc(x.mean((2, 3)))


def fitted(folder, ill, caplog, **options):
    doctor = GateDoctor(**options)
    with caplog.at_level(logging.INFO, gate_doctor.__name__):
        fit = trainer(folder, doctor, limit_train_batches=1, max_epochs=5)
        fit.fit(ImageClassifier(Net(ill), 10), DigitsDataModule(eval_batch_size=90))
    return doctor, warnings_of(caplog)


def warnings_of(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name == gate_doctor.__name__
    ]


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        ("identity", "every gate within 0.01 of 1 for 3 validations: this block is an identity"),
        ("constant", "no gate varies over the images (mean 0."),
        ("nan", "180 gates are NaN: check for"),
        ("unseen", "the gate is never executed: the forward pass does not use"),
    ],
)
def test_a_planted_fault_gives_one_warning_and_is_in_the_table(ill, words, tmp_path, caplog):
    _, warnings = fitted(tmp_path, ill, caplog)
    assert len(warnings) == 1
    assert warnings[0].startswith("backbone.ill: ")
    assert words in warnings[0]
    lines = (tmp_path / "excitation" / "doctor.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "backbone.well", "backbone.ill"]
    assert lines[1].endswith("-")
    assert words.partition(" for ")[0].partition(":")[0] in lines[2]
    with (tmp_path / "excitation" / "doctor.csv").open() as file:
        assert [row["kinds"] for row in csv.DictReader(file)] == ["", ill]
    assert "backbone.well" in caplog.text


def test_a_dead_hidden_unit_is_in_the_table_without_an_alarm(tmp_path, caplog):
    doctor, warnings = fitted(tmp_path, "dead", caplog)
    assert warnings == []
    table = (tmp_path / "excitation" / "doctor.txt").read_text()
    assert "1 of 4 hidden units are 0 for every image" in table
    assert doctor.reports[1].dead == 1


def test_certain_faults_are_reported_after_the_first_validation(tmp_path, caplog, monkeypatch):
    alerts = []
    monkeypatch.setattr(
        gate_doctor.publish, "alert", lambda t, title, text: alerts.append((t.current_epoch, text))
    )
    fitted(tmp_path, "nan", caplog)
    assert [epoch for epoch, _ in alerts] == [0]
    alerts.clear()
    fitted(tmp_path, "identity", caplog, patience=2)
    assert [epoch for epoch, _ in alerts] == [1]


def test_a_finding_that_disappears_is_counted_from_zero(tmp_path, caplog):
    class Mends(ImageClassifier):
        def on_train_epoch_start(self):
            self.backbone.ill.fc2.bias.fill_(0 if self.current_epoch == 2 else 20)

    doctor = GateDoctor(patience=3)
    fit = trainer(tmp_path, doctor, limit_train_batches=1, max_epochs=5)
    fit.fit(Mends(Net(), 10), DigitsDataModule(eval_batch_size=90))
    assert warnings_of(caplog) == []
    assert doctor.state_dict()["streaks"]["backbone.ill"] == {"identity": 2}


def test_validation_alone_reports_everything(tmp_path, caplog):
    doctor = GateDoctor()
    alone = trainer(tmp_path, doctor)
    data = DigitsDataModule(eval_batch_size=90)
    alone.validate(ImageClassifier(Net("identity"), 10), data, verbose=False)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(
        "backbone.ill: every gate within 0.01 of 1: this block is an identity"
    )
    assert doctor.path == tmp_path / "excitation" / "doctor.txt"
    assert doctor.path.exists()


def test_patience_continues_after_a_restart(tmp_path, caplog):
    data = DigitsDataModule(eval_batch_size=90)
    model = ImageClassifier(Net("identity"), 10)
    first = trainer(tmp_path, GateDoctor(), limit_train_batches=1, max_epochs=2)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    assert warnings_of(caplog) == []
    second = trainer(tmp_path, GateDoctor(), limit_train_batches=1, max_epochs=4)
    second.fit(model, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    (warning,) = warnings_of(caplog)
    assert "for 3 validations" in warning


def test_a_healthy_network_raises_no_alarm(tmp_path, caplog):
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=64, eval_batch_size=90)
    model = SEResNetModule(20, ratio=4, in_channels=1)
    doctor = GateDoctor(patience=1)
    fit = trainer(tmp_path, doctor, max_epochs=2, limit_train_batches=8)
    fit.fit(model, data)
    assert warnings_of(caplog) == []
    assert len(doctor.reports) == 9
    assert all(0 < report.effective_rank <= report.hidden for report in doctor.reports)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"`tolerance` \(=0\.5\)"):
        GateDoctor(tolerance=0.5)
    with pytest.raises(ValueError, match=r"`patience` \(=0\)"):
        GateDoctor(patience=0)
