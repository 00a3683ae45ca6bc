"""Schedulers of torch and of users, given as partials."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from se_lightning import FakeDataModule, ImageClassifier


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(folder, scheduler, epochs=3, **options):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 10))
    model = ImageClassifier(
        net, 10, optimizer=partial(torch.optim.SGD, lr=0.1), lr_scheduler=scheduler
    )
    rates = Rates()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[rates], use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(model, FakeDataModule(size=24, image_size=12, batch_size=8))
    return rates.seen, trainer.lr_scheduler_configs[0]


# Nothing is ever an improvement of 1000.
STUCK = {"threshold": 1000.0, "threshold_mode": "abs", "patience": 0, "factor": 0.5}


@pytest.mark.parametrize(
    ("options", "run", "monitor", "expected"),
    [
        ({}, {}, "val/loss", [0.1, 0.1, 0.05]),
        ({"mode": "max"}, {}, "val/acc1", [0.1, 0.1, 0.05]),
        ({}, {"limit_val_batches": 0}, "train/loss", [0.1, 0.1, 0.05]),
        ({"mode": "max"}, {"limit_val_batches": 0}, "train/acc1", [0.1, 0.1, 0.05]),
        (
            {},
            {"check_val_every_n_epoch": 2, "epochs": 5},
            "val/loss",
            [0.1, 0.1, 0.1, 0.1, 0.05],
        ),
    ],
)
def test_a_plateau_is_that_of_the_validation_or_else_of_the_training(
    tmp_path, options, run, monitor, expected
):
    seen, config = fit(tmp_path, partial(ReduceLROnPlateau, **STUCK, **options), **run)
    assert config.monitor == monitor
    assert seen[::3] == pytest.approx(expected)  # three steps per epoch


def test_one_cycle_takes_the_length_of_the_run_or_its_own(tmp_path):
    for schedule, steps in (
        (partial(OneCycleLR, max_lr=0.4), 9),
        (partial(OneCycleLR, max_lr=0.4, total_steps=20), 20),
        (partial(OneCycleLR, max_lr=0.4, epochs=5, steps_per_epoch=3), 15),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        oracle, expected = OneCycleLR(optimizer, max_lr=0.4, total_steps=steps), []
        for _ in range(9):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            oracle.step()
        assert fit(tmp_path, schedule)[0] == pytest.approx(expected)


def test_a_function_of_the_users_gets_what_it_takes(tmp_path):
    def halved(optimizer, total_steps):
        return LambdaLR(optimizer, lambda step: 1.0 if step < total_steps // 3 else 0.5)

    assert fit(tmp_path, halved)[0] == pytest.approx([0.1] * 3 + [0.05] * 6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (partial(CosineAnnealingLR, T_max=2), [0.1, 0.05, 0.0]),
        (partial(LinearLR, start_factor=0.5, total_iters=2), [0.05, 0.075, 0.1]),
        (
            lambda optimizer: SequentialLR(
                optimizer,
                [LinearLR(optimizer, 0.5, total_iters=1), LinearLR(optimizer, 1.0, 0.1, 1)],
                milestones=[1],
            ),
            [0.05, 0.1, 0.01],
        ),
    ],
)
def test_other_schedulers_advance_per_epoch(tmp_path, schedule, expected):
    assert fit(tmp_path, schedule)[0][::3] == pytest.approx(expected, abs=1e-9)
