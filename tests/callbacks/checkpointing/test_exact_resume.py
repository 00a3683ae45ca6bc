"""An interrupted and resumed fit equals an uninterrupted one, bit for bit."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from se_lightning import EMA, ExactState, FakeDataModule, ImageClassifier, LastCheckpoint
from se_lightning.checkpoint import AtomicCheckpointIO
from se_lightning.loggers import ContinuedCSVLogger
from se_lightning.models import SqueezeExcitation
from se_lightning.modules.optim import cosine
from se_lightning.ranks import Interrupted

BATCHES = 7  # 54 training images in batches of 8; the last has 6


class Cut(BaseException):
    """Not an Exception, so that nothing catches it, as with SIGKILL."""


class CutAt(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += 1
        if self.seen > self.batch:
            raise Cut

    def on_validation_start(self, trainer, pl_module):
        if self.seen > self.batch - 1 and not trainer.sanity_checking and self.batch % 2:
            raise Cut


def network() -> ImageClassifier:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), SqueezeExcitation(8, 2),
        nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return ImageClassifier(net, num_classes=10, lr_scheduler=cosine)


def fit(folder, *, cut=None, resume=False, data=None, every=2, ema=False, more=(), **options):
    saving = LastCheckpoint(str(folder / "checkpoints"), every_n_steps=every)
    best = ModelCheckpoint(
        folder / "checkpoints", "{epoch}-{step}", "val/loss", save_top_k=2,
        enable_version_counter=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        **{"max_epochs": 3, "log_every_n_steps": 1, "accelerator": "cpu"} | options,
        default_root_dir=folder,
        logger=ContinuedCSVLogger(folder, "", ""),
        callbacks=[
            best, LearningRateMonitor("step"), ExactState(5), saving,
            *([EMA(0.9)] if ema else []), *([CutAt(cut)] if cut else []), *more,
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    model = network()
    images = FakeDataModule(size=54, image_size=12, batch_size=8, flip=True, **data or {})
    last = resume if isinstance(resume, Path) else saving.path(trainer)
    try:
        trainer.fit(
            model, images, ckpt_path=str(last) if resume and last.exists() else None,
            weights_only=True,
        )  # fmt: skip
    except Cut:
        return None
    return trainer, model


def everything(folder, fitted):
    trainer, model = fitted
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = trainer.checkpoint_callback
    files = {path.name: torch.load(path)["state_dict"] for path in folder.rglob("epoch*.ckpt")}
    return {
        "weights": model.state_dict(),
        "saved": last["state_dict"],
        "raw": last.get("current_model_state"),
        "optimizer": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "step": (trainer.global_step, trainer.current_epoch),
        "metrics": (folder / "metrics.csv").read_bytes(),
        "best": [(os.path.basename(k), v) for k, v in best.best_k_models.items()],
        "files": files,
    }


def assert_same(left, right, where=""):
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for at, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{at}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


class Noise(pl.Callback):
    """A user's callback that scales gradients by random numbers, in several hooks."""

    def __init__(self, draw):
        self.draw, self.factor = draw, 1.0

    def on_train_epoch_start(self, trainer, pl_module):
        self.factor = self.draw()

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.backbone[-1].bias.data += 0.01 * self.draw()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.mul_(self.factor * self.draw())


CONFIGURATIONS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "every": 1},
    "mixed": {"data": {"mixup": 0.4, "cutmix": 1.0, "random_erasing": 0.5, "rand_augment": 5}},
    "ema": {"ema": True, "precision": "bf16-mixed"},
    "steps": {"max_epochs": -1, "max_steps": 17},
    "validated within": {"val_check_interval": 3, "every": 1},
    "every other": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "limited": {"limit_train_batches": 5, "log_every_n_steps": 2},
    "epochs only": {"every": None, "data": {"repeats": 3}},
    "workers": {"data": {"num_workers": 2}},
    "overfitting": {"overfit_batches": 5, "every": 1},
    "double": {"precision": "64-true"},
    "scheduled accumulation": {"more": [GradientAccumulationScheduler({0: 1, 1: 2})], "every": 1},
    "numpy": {"more": [Noise(np.random.rand)]},
    "random": {"more": [Noise(random.random)]},
    "torch": {"more": [Noise(lambda: float(torch.rand(())))]},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_interrupted_and_resumed_fit_equals_an_uninterrupted_one(name, tmp_path):
    options = CONFIGURATIONS[name]
    whole = tmp_path / "whole"
    expected = everything(whole, fit(whole, **options))
    for cut in (9,) if name == "workers" else (3, 8, 14):
        folder = tmp_path / str(cut)
        assert fit(folder, cut=cut, **options) is None
        if cut == 3:  # interrupt it a second time
            assert fit(folder, cut=7, resume=True, **options) is None
        assert_same(everything(folder, fit(folder, resume=True, **options)), expected, f"{cut}")


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_run_in_another_folder_resumes_as_if_it_had_stayed(tmp_path, how):
    expected = everything(tmp_path / "whole", fit(tmp_path / "whole", max_epochs=4))
    first, second = tmp_path / "first", tmp_path / "second"
    assert fit(first, cut=18, max_epochs=4) is None
    shutil.copytree(first, second)
    if how == "moved":
        shutil.rmtree(first)
    else:  # a file that is read from the old folder would end the run
        for path in first.rglob("*.ckpt"):
            path.write_bytes(b"of another run")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    fitted = fit(second, resume=True, max_epochs=4)
    assert_same(everything(second, fitted), expected)
    paths = [*fitted[0].checkpoint_callback.best_k_models, fitted[0].checkpoint_callback.dirpath]
    assert all(path.startswith(f"{second}/") for path in paths)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_a_new_run_from_the_checkpoint_of_another_has_its_own_best(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    fit(first)
    (second / "checkpoints").mkdir(parents=True)
    trainer, _ = fit(second, resume=first / "checkpoints" / "last.ckpt", max_epochs=5)
    best = trainer.checkpoint_callback
    assert [os.path.dirname(path) for path in best.best_k_models] == [
        str(second / "checkpoints")
    ] * 2
    assert os.path.dirname(best.best_model_path) == str(second / "checkpoints")
    assert len(list(first.rglob("epoch*.ckpt"))) == 2


def test_a_run_whose_best_checkpoint_is_missing_does_not_forget_it(tmp_path):
    assert fit(tmp_path, cut=18) is None
    for path in tmp_path.rglob("epoch*.ckpt"):
        path.unlink()
    with pytest.raises(MisconfigurationException, match="is missing, the best checkpoint of the"):
        fit(tmp_path, resume=True)


def test_averaging_that_cannot_resume_is_refused_at_the_start(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"Use se_lightning\.EMA"):
        fit(tmp_path, more=[StochasticWeightAveraging(0.1)])
    assert not list(tmp_path.rglob("*.ckpt"))


class Signal(pl.Callback):
    def __init__(self, batch: int, number: int) -> None:
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


def test_sigterm_saves_when_no_gradients_are_accumulated_and_stops_the_run(tmp_path):
    options = {"accumulate_grad_batches": 3, "every": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = everything(whole, fit(whole, **options))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="143") as ended:
        fit(cut, more=[Signal(8, signal.SIGTERM)], **options)  # the second of epoch 1
    assert ended.value.code == 128 + signal.SIGTERM
    assert "saved at step 4; continue with resume=" in ended.value.message  # 3 in epoch 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(cut / "checkpoints" / "last.ckpt")["FakeDataModule"]["batch"] == 3
    assert_same(everything(cut, fit(cut, resume=True, **options)), expected)


def test_a_second_sigterm_stops_the_run_at_once_but_not_a_duplicate_of_the_first(monkeypatch):
    saving = LastCheckpoint()
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for clock[0] in (100.0, 101.0):
        saving._note(signal.SIGTERM, None)
    clock[0] = 110.0
    with pytest.raises(Interrupted):
        saving._note(signal.SIGTERM, None)


def test_minutes_are_counted_from_the_last_save(tmp_path, monkeypatch):
    steps, real = [], LastCheckpoint._save
    monkeypatch.setattr(
        LastCheckpoint, "_save", lambda self, t: (steps.append(t.global_step), real(self, t))
    )
    clock = iter(range(0, 10_000, 30))  # each call advances it by half a minute
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    saving = LastCheckpoint(str(tmp_path), every_minutes=1.2)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, callbacks=[saving], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(network(), FakeDataModule(size=54, image_size=12, batch_size=8))
    assert steps == [3, 6, 7]  # every 1.5 minutes, and at the end of the epoch


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps`"),
        ({"every_minutes": 0}, r"`every_minutes` \(=0\) must be above 0"),
        ({"every_minutes": float("nan")}, "`every_minutes`"),
    ],
)
def test_intervals_are_checked(argument, message):
    with pytest.raises(ValueError, match=message):
        LastCheckpoint(**argument)


def test_a_checkpoint_within_an_epoch_requires_the_same_batch_size(tmp_path):
    assert fit(tmp_path, cut=3) is None
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt")["FakeDataModule"]
    position = {key: value for key, value in state.items() if key not in ("data", "preprocessing")}
    assert position == {"epoch": 0, "batch": 2, "world_size": 1, "batch_size": 8}
    other = FakeDataModule(size=54, batch_size=4)
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="batch_size=8"):
        other.load_state_dict(state)
    other.load_state_dict(state | {"batch": 0})  # between epochs it may differ


def test_a_fit_in_another_thread_does_not_handle_signals(tmp_path):
    fitted = []
    thread = threading.Thread(target=lambda: fitted.append(fit(tmp_path, max_epochs=1)))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert fitted
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("limit", [{}, {"max_epochs": -1, "max_steps": 21}])
def test_a_fit_interrupted_after_its_last_save_only_restores_its_metrics(tmp_path, limit):
    trainer, _ = fit(tmp_path, **limit)
    rows = (tmp_path / "metrics.csv").read_bytes()
    again, _ = fit(tmp_path, resume=True, **limit)
    assert again.callback_metrics == trainer.callback_metrics
    assert {"train/acc1", "val/loss"} <= trainer.callback_metrics.keys()
    assert (tmp_path / "metrics.csv").read_bytes() == rows
