"""What Lightning lets people ask of a checkpoint callback works with LastCheckpoint and TopK."""

import itertools
import os
import signal
import stat
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from se_lightning import ExactState, FakeDataModule, ImageClassifier, LastCheckpoint, TopK
from se_lightning.callbacks.checkpointing import slurm
from se_lightning.ranks import Interrupted

pytestmark = [
    # The best is that of the first callback; here, that is the claim.
    pytest.mark.filterwarnings("ignore:.*is called with Trainer configured with multiple"),
]


def network() -> ImageClassifier:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(900, 10))
    return ImageClassifier(net, num_classes=10)


def data() -> FakeDataModule:
    return FakeDataModule(size=54, batch_size=8)


class Epochs(pl.Callback):
    """Records the epochs that are trained."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(trainer.current_epoch)


class Scores(pl.Callback):
    """Logs a score that is best in epoch 1, and one that is best in epoch 0."""

    def on_validation_epoch_end(self, trainer, pl_module):
        self.log("score", {0: 2.0, 1: 1.0}.get(trainer.current_epoch, 3.0))
        self.log("other", float(trainer.current_epoch))


def saving(folder: Path, name: str):
    return {
        "last": lambda: LastCheckpoint(str(folder / "last")),
        "best": lambda: ModelCheckpoint(folder / "best", "best-{epoch}", "score"),
        "other": lambda: ModelCheckpoint(folder / "other", "other-{epoch}", "other"),
        "top": lambda: TopK(folder / "top", "top-{epoch}", "score", save_top_k=2),
    }[name]()


def trainer(folder: Path, names, epochs: int = 3, *more, **options) -> pl.Trainer:
    return pl.Trainer(
        **{"logger": False} | options,
        max_epochs=epochs,
        callbacks=[ExactState(5), *(saving(folder, name) for name in names), Scores(), *more],
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("names", [*itertools.permutations(("last", "best")), ("top", "last")])
def test_fit_goes_on_from_the_last_checkpoint(tmp_path, names):
    trainer(tmp_path, names, 2).fit(network(), data())
    again = Epochs()
    trainer(tmp_path, names, 4, again).fit(network(), data(), ckpt_path="last")
    assert again.seen == [2, 3]


def test_fit_from_the_last_checkpoint_starts_from_scratch_if_there_is_none(tmp_path):
    seen = Epochs()
    with pytest.warns(UserWarning, match="there is no last checkpoint"):
        trainer(tmp_path, ["last"], 1, seen).fit(network(), data(), ckpt_path="last")
    assert seen.seen == [0]


def test_the_newest_of_several_last_checkpoints_is_used(tmp_path):
    trainer(tmp_path, ["last"], 1).fit(network(), data())
    older = ModelCheckpoint(tmp_path / "other", save_last=True)
    trainer(tmp_path, [], 2, older).fit(network(), data())
    (tmp_path / "last/last.ckpt").touch()
    os.utime(tmp_path / "other/last.ckpt", (1, 1))
    seen = Epochs()
    more = ModelCheckpoint(tmp_path / "other", save_last=True)
    trainer(tmp_path, ["last"], 2, more, seen).fit(network(), data(), ckpt_path="last")
    assert seen.seen == [1]


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (("last", "best"), "best-epoch=1.ckpt"),
        (("best", "last"), "best-epoch=1.ckpt"),
        (("last", "top"), "top-epoch=1.ckpt"),
        (("other", "last", "best"), "other-epoch=0.ckpt"),
        (("last", "best", "other"), "best-epoch=1.ckpt"),
        (("last", "top", "best", "other"), "top-epoch=1.ckpt"),
        (("last",), "last.ckpt"),
    ],
)
def test_the_best_checkpoint_is_found_in_any_order(tmp_path, names, best):
    fitted, net = trainer(tmp_path, names), network()
    fitted.fit(net, data())
    first = fitted.checkpoint_callback
    assert Path(first.best_model_path).name == best
    if best != "last.ckpt":
        assert float(first.best_model_score) == min(map(float, first.best_k_models.values()))
    for ask in (fitted.validate, fitted.test, fitted.predict):
        loader = data()
        loader.setup("test")
        options = {} if ask == fitted.predict else {"verbose": False}
        ask(net, loader.eval_dataloader("test"), ckpt_path="best", **options)
        assert Path(fitted.ckpt_path).name == best
    saved = torch.load(first.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("names", list(itertools.permutations(("last", "best", "top"))))
def test_each_callback_knows_its_files(tmp_path, names):
    fitted = trainer(tmp_path, names)
    fitted.fit(network(), data())
    callbacks = dict(zip(names, [None] * 3, strict=True))
    for each in fitted.checkpoint_callbacks:
        name = {LastCheckpoint: "last", ModelCheckpoint: "best", TopK: "top"}[type(each)]
        callbacks[name] = each
    last = callbacks["last"]
    assert last.last_model_path == str(tmp_path / "last/last.ckpt")
    assert last.dirpath == str(tmp_path / "last")
    last.to_yaml(tmp_path / "files.yaml")
    assert Path(callbacks["best"].best_model_path).is_file()
    assert len(callbacks["top"].best_k_models) == 2
    assert {path.name for path in (tmp_path / "last").iterdir()} == {"last.ckpt"}


def test_two_last_checkpoints_in_two_folders(tmp_path):
    second = LastCheckpoint(str(tmp_path / "scratch"))
    trainer(tmp_path, ["last", "best"], 1, second).fit(network(), data())
    assert (tmp_path / "last/last.ckpt").is_file()
    assert (tmp_path / "scratch/last.ckpt").is_file()


class Uploading(CSVLogger):
    def after_save_checkpoint(self, checkpoint_callback):
        self.uploaded = Path(checkpoint_callback.last_model_path).name


def test_loggers_hear_of_each_save(tmp_path):
    logger = Uploading(tmp_path)
    trainer(tmp_path, ["last"], 1, logger=logger).fit(network(), data())
    assert logger.uploaded == "last.ckpt"


class Preempted(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("asked", ["hpc", None])
def test_a_job_that_slurm_restarts_goes_on(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(slurm, "IN_COMMAND", False)
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "job", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Interrupted):
        trainer(tmp_path, ["last"], 1, Preempted()).fit(network(), data())
    assert (tmp_path / "hpc_ckpt_1.ckpt").is_file()
    restarted = trainer(tmp_path, ["last"], 1)
    restarted.fit(network(), data(), ckpt_path=asked)
    assert Path(restarted.ckpt_path).name == "hpc_ckpt_1.ckpt"
    assert restarted.global_step == 7
