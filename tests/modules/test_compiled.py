"""Networks wrapped by torch.compile: state dicts, checkpoints and averages keep plain names."""

import pytest
import pytorch_lightning as pl
import torch

from se_lightning import EMA, DigitsDataModule, ImageClassifier, LastCheckpoint, SEResNetModule
from se_lightning.checkpoint import check_fits, model_from, read_checkpoint
from se_lightning.models import load_weights, se_resnet20

SIZES = {"num_classes": 10, "in_channels": 1, "ratio": 4}


def compiled(network):
    return torch.compile(network, backend="eager")


class Wrapping(SEResNetModule):
    """A subclass that compiles its network in the constructor."""

    def __init__(self):
        super().__init__(20, **SIZES)
        self.backbone = compiled(self.backbone)


def wrapped_later():
    module = SEResNetModule(20, **SIZES)
    module.backbone = compiled(module.backbone)
    return module


def given():
    return ImageClassifier(compiled(se_resnet20(**SIZES)), num_classes=10)


def in_place():
    module = SEResNetModule(20, **SIZES)
    module.backbone.compile(backend="eager")
    return module


def plain():
    return SEResNetModule(20, **SIZES)


KINDS = [wrapped_later, Wrapping, given, in_place, plain]


@pytest.mark.parametrize("make", KINDS)
def test_names_are_those_of_the_plain_network(make):
    assert list(make().state_dict()) == list(plain().state_dict())


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_states_load_into_each_other(source, to):
    one, other = source(), to()
    other.load_state_dict(one.state_dict())
    old = {f"backbone._orig_mod.{k}": v + 1 for k, v in one.backbone.named_parameters()}
    names = {key.replace("_orig_mod._orig_mod", "_orig_mod"): v for key, v in old.items()}
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert not other.load_state_dict(names, strict=False).unexpected_keys
    assert all(
        torch.equal(a + 1, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("make", [wrapped_later, given])
def test_a_fit_with_an_average_resumes_and_its_checkpoint_reloads(tmp_path, make):
    def fit(epochs, **options):
        module = make()
        trainer = pl.Trainer(
            max_epochs=epochs, limit_train_batches=2, limit_val_batches=1, accelerator="cpu",
            callbacks=[LastCheckpoint(str(tmp_path)), EMA(0.9)], logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, DigitsDataModule(), **options)
        return trainer, module

    fit(1)
    trainer, module = fit(2, ckpt_path="last")
    assert trainer.global_step == 4
    path = tmp_path / "last.ckpt"
    read = read_checkpoint(path)
    assert not [key for key in read["state_dict"] if "_orig_mod" in key]
    assert not [key for key in read["current_model_state"] if "_orig_mod" in key]
    if make is wrapped_later:
        for reloaded in (model_from(read, path), SEResNetModule.load_from_checkpoint(path)):
            assert all(map(torch.equal, reloaded.parameters(), module.parameters()))
    check_fits(read, make(), path)
    network = se_resnet20(**SIZES)
    load_weights(network, str(path))
    assert all(map(torch.equal, network.parameters(), module.parameters()))
