"""Lightning's searches for a learning rate and a batch size."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from se_lightning import EMA, ExactState, FakeDataModule, ImageClassifier, LastCheckpoint, NonFinite
from se_lightning.modules.optim import cosine
from se_lightning.modules.rate import set_rate

pytestmark = pytest.mark.filterwarnings("ignore:.*weights_only. was not set")


def network(**options) -> ImageClassifier:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
    )
    options = {"optimizer": partial(torch.optim.SGD, lr=0.02)} | options
    return ImageClassifier(net, num_classes=10, **options)


def data() -> FakeDataModule:
    return FakeDataModule(size=54, image_size=12, batch_size=8)


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def trainer(folder, *callbacks) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=2,
        callbacks=[ExactState(5), LastCheckpoint(str(folder)), EMA(0.9), NonFinite(), *callbacks],
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class Finder(LearningRateFinder):
    def __init__(self) -> None:
        super().__init__(num_training_steps=30, min_lr=1e-4, max_lr=0.5)


@pytest.mark.parametrize("options", [{}, {"lr_scheduler": cosine}, {"layer_decay": 0.5}])
def test_a_fit_after_a_search_equals_one_with_the_rate_it_found(tmp_path, options):
    searched, model, images = trainer(tmp_path / "a"), network(**options), data()
    found = Tuner(searched).lr_find(model, datamodule=images, num_training=30, max_lr=0.5)
    assert model.lr == found.suggestion() > 0
    assert not (tmp_path / "a/last.ckpt").exists()  # nothing of the search is saved
    searched.fit(model, images)
    given = options | {"optimizer": partial(torch.optim.SGD, lr=model.lr)}
    plain, twin = trainer(tmp_path / "b"), network(**given)
    plain.fit(twin, data())
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert searched.callback_metrics.keys() == plain.callback_metrics.keys()
    for name, value in searched.callback_metrics.items():
        assert value == plain.callback_metrics[name], name
    assert torch.load(tmp_path / "a/last.ckpt")["global_step"] == 14


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [[1.0]]),
        ({"lr_scheduler": partial(StepLR, step_size=1, gamma=0.1)}, [[1.0]] * 7 + [[0.1]] * 7),
        ({"layer_decay": 0.5}, [[0.5, 1.0]]),
        ({"lr_scheduler": partial(cosine, warmup_epochs=1.0)}, None),
    ],
)
def test_the_finder_callback_sets_the_rate_of_the_fit(tmp_path, options, factors):
    rates, model = Rates(), network(**options)
    trainer(tmp_path, Finder(), rates).fit(model, data())
    assert model.lr is not None
    if factors is None:  # the same as without a search, at another rate
        twin, given = Rates(), options | {"optimizer": partial(torch.optim.SGD, lr=model.lr)}
        trainer(tmp_path, twin).fit(network(**given), data())
        expected = twin.seen
    else:
        factors = factors * 14 if len(factors) == 1 else factors
        expected = [[model.lr * factor for factor in each] for each in factors]
    assert rates.seen == [pytest.approx(each) for each in expected]


def test_a_one_cycle_schedule_keeps_its_own_rates(tmp_path):
    schedule = {"lr_scheduler": partial(OneCycleLR, max_lr=0.1)}
    with_search, without = Rates(), Rates()
    trainer(tmp_path, Finder(), with_search).fit(network(**schedule), data())
    trainer(tmp_path, without).fit(network(**schedule), data())
    assert with_search.seen == [pytest.approx(each) for each in without.seen]


def test_a_rate_can_be_set_by_hand(tmp_path):
    model, rates = network(), Rates()
    model.lr = 0.25
    trainer(tmp_path, rates).fit(model, data())
    assert rates.seen == [[0.25]] * 14


def test_no_rate_changes_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    set_rate(optimizer, None)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_is_found(tmp_path, mode):
    images, model, searched = data(), network(), trainer(tmp_path)
    found = Tuner(searched).scale_batch_size(
        model, datamodule=images, mode=mode, steps_per_trial=1, init_val=4, max_trials=3
    )
    assert images.batch_size == found > 4
    assert not (tmp_path / "last.ckpt").exists()
    searched.fit(model, images)
    assert searched.num_training_batches == -(-54 // found)


def test_the_batch_size_finder_works_as_a_callback(tmp_path):
    images = data()
    finder = BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2)
    trainer(tmp_path, finder).fit(network(), images)
    assert images.batch_size == 8
