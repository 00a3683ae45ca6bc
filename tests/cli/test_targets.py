"""Our own parameters never reach a target that does not take them; a user's never vanish."""

import sys

import pytest
from omegaconf import OmegaConf

from se_lightning.cli import targets

OPTIONS = {
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "foreach": None,
    },
    "lr_scheduler": {
        "_target_": "se_lightning.modules.optim.cosine",
        "_partial_": True,
        "warmup_epochs": 2,
        "min_factor": 0.0,
    },
    "trainer": {"_target_": "pytorch_lightning.Trainer", "max_epochs": 16, "strategy": "auto"},
    "callbacks": {"x": {"_target_": "se_lightning.ExcitationHistogram", "bins": 64}},
    "data": {"_target_": "se_lightning.DigitsDataModule", "flip": False, "seed": "${seed}"},
    "model": {
        "_target_": "se_lightning.SEResNetModule",
        "depth": 20,
        "num_classes": None,
        "in_channels": None,
        "optimizer": "${optimizer}",
        "lr_scheduler": "${lr_scheduler}",
    },
    "seed": 0,
}
MINE = """
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from se_lightning import DigitsDataModule, SEResNetModule

class Bare(LightningModule):
    def __init__(self, width=4):
        super().__init__()

class Tuned(LightningModule):
    def __init__(self, width, optimizer):
        super().__init__()

class Child(SEResNetModule):
    def __init__(self, gamma=2.0, **options):
        super().__init__(**options)

class Lost(LightningModule):
    def __init__(self, width=4, **options):
        super().__init__()

def build(**options):
    return SEResNetModule(**options)

class Data(LightningDataModule):
    def __init__(self, root="data"):
        super().__init__()

class MoreDigits(DigitsDataModule):
    def __init__(self, extra=1, **options):
        super().__init__(**options)

class Few(Callback):
    def __init__(self, every=1):
        pass

class Quiet(Trainer):
    def __init__(self, max_epochs=1, callbacks=None, logger=None):
        super().__init__(max_epochs=max_epochs)

class Focal(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
"""


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Fit a config with changes, as if typed; return it as plain Python."""
    (tmp_path / "fitted.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fitted", raising=False)

    def run(changes: dict, given: tuple[str, ...] = (), options: dict = OPTIONS) -> dict:
        monkeypatch.setattr(targets, "given_keys", lambda: list(given))
        monkeypatch.setattr(targets, "compared_elsewhere", list)
        cfg = OmegaConf.merge(OmegaConf.create(options), OmegaConf.create(changes))
        targets.fit_to_targets(cfg, OmegaConf.create(options))
        return OmegaConf.to_container(cfg)

    return run


LEFT = {  # the group, its new target, what it needs, and what is left of the option
    "RMSprop": ("optimizer", "torch.optim.RMSprop", {}, {"lr", "momentum", "foreach"}),
    "Adam": ("optimizer", "torch.optim.Adam", {}, {"lr", "foreach"}),
    "Adagrad": ("optimizer", "torch.optim.Adagrad", {}, {"lr", "foreach"}),
    "Lamb": ("optimizer", "timm.optim.Lamb", {}, {"lr", "foreach"}),
    "step": ("lr_scheduler", "torch.optim.lr_scheduler.StepLR", {"step_size": 3}, {"step_size"}),
    "one cycle": ("lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 1}, {"max_lr"}),
    "plateau": ("lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", {}, set()),
    "trainer": ("trainer", "fitted.Quiet", {}, {"max_epochs"}),
    "data": ("data", "fitted.Data", {}, set()),
    "data of a subclass": ("data", "fitted.MoreDigits", {}, {"flip", "seed"}),
    "model": ("model", "fitted.Bare", {}, set()),
    "model with an optimizer": ("model", "fitted.Tuned", {"width": 3}, {"width", "optimizer"}),
    "model that loses names": ("model", "fitted.Lost", {}, set()),
    "subclass": ("model", "fitted.Child", {}, {*OPTIONS["model"]} - {"_target_"}),
    "function": ("model", "fitted.build", {}, {*OPTIONS["model"]} - {"_target_"}),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_new_target_keeps_what_it_takes_of_the_option(fit, name):
    group, target, needs, left = LEFT[name]
    given = tuple(f"{group}.{key}" for key in needs)
    fitted = fit({group: {"_target_": target, **needs}}, given)[group]
    assert {key for key in fitted if not key.startswith("_")} == left
    assert {key: fitted[key] for key in left} == {
        key: ({**OPTIONS[group], **needs})[key] for key in left
    }


def test_a_new_callback_keeps_what_it_takes(fit):
    assert fit({"callbacks": {"x": {"_target_": "fitted.Few", "every": 2}}})["callbacks"]["x"] == {
        "_target_": "fitted.Few",
        "every": 2,
    }


REFUSED = {
    "two": (
        {"optimizer": {"_target_": "torch.optim.RMSprop", "nesterov": True, "betas": [1, 1]}},
        ["optimizer.nesterov", "optimizer.betas"],
        "optimizer: torch.optim.RMSprop does not take `nesterov`, `betas`. It takes params, lr",
    ),
    "a changed one": (
        {"optimizer": {"_target_": "torch.optim.Adam", "momentum": 0.8}},
        [],
        "optimizer: torch.optim.Adam does not take `momentum`. ",
    ),
    "a typing error": (
        {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_sice": 1}},
        [],
        "does not take `step_sice`. Did you mean `lr_scheduler.step_size`? It takes optimizer, ",
    ),
    "needs": (
        {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.CyclicLR"}},
        [],
        "CyclicLR needs `base_lr`, `max_lr`: +lr_scheduler.base_lr=... +lr_scheduler.max_lr=...",
    ),
    "strategy": (
        {"trainer": {"strategy": {"_target_": "pytorch_lightning.strategies.SingleDeviceStrategy",
                                  "device": "cpu", "a": 1, "b": 2}}},
        [],
        "trainer.strategy: pytorch_lightning.strategies.SingleDeviceStrategy does not take `a`, ",
    ),
    "data": ({"data": {"_target_": "fitted.Data", "size": 3}}, [], "Data does not take `size`"),
    "loss": (
        {"model": {"_target_": "fitted.Tuned", "width": {"_target_": "fitted.Focal", "x": 1}}},
        [],
        "model.width: fitted.Focal does not take `x`. It takes gamma.",
    ),
    "unread": (
        {"model": {"_target_": "fitted.Bare"}, "optimizer": {"lr": 0.2}},
        ["optimizer.lr"],
        "`optimizer.lr` has no effect: fitted.Bare does not take `optimizer`.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_user_gave_is_refused_at_once(fit, name):
    changes, given, words = REFUSED[name]
    with pytest.raises(ValueError, match="`") as raised:
        fit(changes, tuple(given))
    assert words in str(raised.value)


def test_a_file_of_ones_own_is_not_corrected(fit):
    options = {**OPTIONS, "optimizer": {"_target_": "torch.optim.Adam", "momentum": 0.9}}
    with pytest.raises(ValueError, match=r"Adam does not take `momentum`"):
        fit({}, options=options)


def test_the_options_of_a_node_are_the_targets_own_business(fit):
    node = {"_target_": "fitted.Tuned", "_recursive_": False, "width": {"_target_": "fitted.Focal"}}
    node["width"]["later"] = 1
    assert fit({"model": node})["model"]["width"]["later"] == 1
