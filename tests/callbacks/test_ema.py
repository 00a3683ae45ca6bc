from functools import partial

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from se_lightning import (
    EMA,
    DigitsDataModule,
    ExcitationHistogram,
    GateDoctor,
    ImageClassifier,
    NonFinite,
    SEResNetModule,
)
from se_lightning.models import load_weights, se_resnet20


def digits():
    return DigitsDataModule(batch_size=32, eval_batch_size=100)


def network(seed=0):
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return SEResNetModule(20, ratio=4, in_channels=1, optimizer=optimizer)


def trainer(folder, *callbacks, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "limit_train_batches": 4}
    defaults |= {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    quiet["callbacks"] = list(callbacks)
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


class Steps(Callback):
    """Records the weights after each step and in each validation."""

    def __init__(self):
        self.after, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > len(self.after):
            self.after.append(copied(module))

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated.append(copied(module))


def average_by_hand(weights, decay, warmup):
    """Return the average in float64 by the documented formula."""
    average = {name: value.double() for name, value in weights[0].items()}
    for n, step in enumerate(weights[1:], 1):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        for name, value in step.items():
            if value.is_floating_point():
                average[name] = d * average[name] + (1 - d) * value.double()
            else:
                average[name] = value.double()
    return average


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"decay": 0.3}, slice(None)),
        ({"decay": 0.9, "warmup": False}, slice(None)),
        ({"decay": 0.9, "every_n_steps": 2, "start_step": 1}, slice(1, None, 2)),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_average_follows_the_formula(tmp_path, options, kept, precision):
    model, steps = network(), Steps()
    few = {"limit_train_batches": 8, "precision": precision}
    fitted = trainer(tmp_path, EMA(**options), steps, **few)
    fitted.fit(model, datamodule=digits())
    wanted = average_by_hand(steps.after[kept], options["decay"], options.get("warmup", True))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    assert model.state_dict()["backbone.bn1.num_batches_tracked"] == 8
    assert same(steps.validated[0], model.state_dict())


def test_the_average_is_updated_after_each_step_and_not_after_each_batch(tmp_path):
    model, steps = network(), Steps()
    ema = EMA(decay=0.5, warmup=False)
    fitted = trainer(tmp_path, ema, steps, limit_train_batches=6, accumulate_grad_batches=2)
    fitted.fit(model, datamodule=digits())
    wanted = average_by_hand(steps.after, 0.5, warmup=False)
    assert len(steps.after) == 3
    torch.testing.assert_close(
        model.backbone.fc.weight.double(), wanted["backbone.fc.weight"], rtol=1e-5, atol=1e-6
    )


def test_raw_weights_are_used_before_the_first_update(tmp_path):
    """Lightning's callback would validate, save and end with the initial weights."""
    model, steps = network(), Steps()
    initial = copied(model)
    saver = ModelCheckpoint(tmp_path, filename="best")
    trainer(tmp_path, EMA(start_step=100), steps, saver).fit(model, datamodule=digits())
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    raw = steps.after[-1]
    assert not torch.equal(raw["backbone.fc.weight"], initial["backbone.fc.weight"])
    assert same(steps.validated[0], raw)
    assert same(saved["state_dict"], raw)
    assert same(model.state_dict(), raw)


def test_a_checkpoint_has_both_and_the_test_uses_the_average(tmp_path):
    model, steps = network(), Steps()
    saver = ModelCheckpoint(tmp_path, filename="best", save_last=True)
    fitted = trainer(tmp_path, EMA(decay=0.9), steps, saver)
    fitted.fit(model, datamodule=digits())
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert same(saved["current_model_state"], steps.after[-1])
        assert same(saved["state_dict"], steps.validated[-1])
    averaged, raw = (se_resnet20(num_classes=10, in_channels=1, ratio=4) for _ in range(2))
    load_weights(averaged, tmp_path / "best.ckpt")
    load_weights(raw, tmp_path / "best.ckpt", use_ema=False)
    assert torch.equal(averaged.fc.weight, steps.validated[-1]["backbone.fc.weight"])
    assert torch.equal(raw.fc.weight, steps.after[-1]["backbone.fc.weight"])

    class Sees(Callback):
        def on_test_batch_start(self, trainer, module, *_):
            self.weights = copied(module)

    sees = Sees()
    tested = trainer(tmp_path, EMA(decay=0.9), sees, saver, limit_test_batches=1)
    tested.test(network(1), digits(), ckpt_path=tmp_path / "best.ckpt", weights_only=True)
    assert same(sees.weights, steps.validated[-1])
    fitted.test(model, digits(), ckpt_path="best", weights_only=True)
    assert same(model.state_dict(), steps.validated[-1])


@pytest.mark.parametrize("start_step", [0, 6])
def test_a_second_trainer_resumes_bit_for_bit(tmp_path, start_step):
    """Resumed after four steps, with an average or before its first update."""

    def saver():
        return ModelCheckpoint(tmp_path, filename="end", save_last=True)

    ema = {"decay": 0.9, "start_step": start_step}
    model = network()
    trainer(tmp_path, EMA(**ema), saver(), max_epochs=2).fit(model, datamodule=digits())
    wanted = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    trainer(tmp_path, EMA(**ema), saver()).fit(network(), datamodule=digits())
    more, later = network(seed=5), trainer(tmp_path, EMA(**ema), saver(), max_epochs=2)
    path = (tmp_path / "last.ckpt").rename(tmp_path / "cut.ckpt")
    later.fit(more, datamodule=digits(), ckpt_path=path, weights_only=True)
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert same(found[key], wanted[key]), key
    assert found["averaging_state"]["n_averaged"] == 8 - start_step
    assert not torch.equal(
        found["state_dict"]["backbone.fc.weight"],
        found["current_model_state"]["backbone.fc.weight"],
    )
    assert same(model.state_dict(), more.state_dict())


def test_a_checkpoint_without_an_average_starts_one(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="plain")
    trainer(tmp_path, saver).fit(network(), datamodule=digits())
    model, steps = network(1), Steps()
    fitted = trainer(tmp_path, EMA(decay=0.5), steps, ModelCheckpoint(tmp_path), max_epochs=2)
    path = tmp_path / "plain.ckpt"
    fitted.fit(model, datamodule=digits(), ckpt_path=path, weights_only=True)
    wanted = average_by_hand(steps.after, 0.5, warmup=True)
    torch.testing.assert_close(
        model.backbone.fc.weight.double(), wanted["backbone.fc.weight"], rtol=1e-5, atol=1e-6
    )


def test_a_failed_validation_restores_the_raw_weights(tmp_path):
    class Fails(Callback):
        def on_validation_batch_end(self, *_):
            raise RuntimeError("planted")

    model, steps = network(), Steps()
    saver = ModelCheckpoint(tmp_path, filename="cut", save_on_exception=True)
    with pytest.raises(RuntimeError, match="planted"):
        trainer(tmp_path, EMA(decay=0.9), steps, Fails(), saver).fit(model, datamodule=digits())
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert same(saved["current_model_state"], steps.after[-1])
    assert same(saved["state_dict"], steps.validated[-1])
    assert same(model.state_dict(), steps.after[-1])


@pytest.mark.parametrize("last", [True, False])
def test_recorded_gates_are_those_of_the_averaged_network(tmp_path, gates_by_hand, last):
    model, histogram = network(), ExcitationHistogram()
    doctor = GateDoctor()
    data = digits()
    several = [histogram, doctor]
    several.insert(2 if last else 0, EMA(decay=0.95))
    fitted = trainer(tmp_path, *several, limit_val_batches=None, limit_train_batches=8)
    fitted.fit(model, datamodule=data)
    gates, _ = gates_by_hand(model, data.val_dataloader())  # the model now has the average
    summary = histogram.summary
    for layer, path in enumerate(summary.layers):
        found = torch.from_numpy(summary.mean()[summary.of(layer)])
        wanted = torch.from_numpy(gates[path]).mean(0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert len(doctor.reports) == len(gates)


def test_a_skipped_step_is_not_an_update(tmp_path):
    model, steps = network(), Steps()
    calls = []
    model.backbone.fc.weight.register_hook(
        lambda g: [calls.append(1), g * (float("nan") if len(calls) == 3 else 1)][1]
    )
    callbacks = (NonFinite("skip"), EMA(decay=0.5, warmup=False), steps)
    trainer(tmp_path, *callbacks, limit_train_batches=5).fit(model, datamodule=digits())
    wanted = average_by_hand(
        [weights for step, weights in enumerate(steps.after) if step != 2], 0.5, warmup=False
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)


WRITER = """
import pytorch_lightning as pl
import torch


class Writer(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_validation_batch_start(self, trainer, module, *_):
        if not trainer.sanity_checking:
            torch.save(module.state_dict(), f"{self.folder}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks_validate_and_save_the_same_network(tmp_path, cli, short):
    """Their batch norms have statistics of different samples."""
    (tmp_path / "writing.py").write_text(WRITER)
    cli(
        *short,
        *("trainer.devices=2", "trainer.strategy=ddp", "logger=csv", "callbacks=ema"),
        f"+callbacks.writer={{_target_:writing.Writer,folder:{tmp_path}}}",
        env={"PYTHONPATH": str(tmp_path)},
    )
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    (best,) = tmp_path.rglob("best.ckpt")
    assert same(torch.load(best, weights_only=True)["state_dict"], first)


class Checked(EMA):
    """Torch raises an error if an update synchronizes with the GPU."""

    def _update(self, module):
        assert next(self._average_model.parameters()).device.type == "cuda"
        torch.cuda.set_sync_debug_mode("error")
        try:
            super()._update(module)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_an_update_does_not_synchronize_with_the_gpu(tmp_path):
    trainer(tmp_path, Checked(), accelerator="gpu", devices=1).fit(network(), datamodule=digits())


def test_a_sharded_network_is_refused(tmp_path):
    fitted = trainer(tmp_path)
    fitted.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(MisconfigurationException, match=r"trainer\.strategy=ddp"):
        EMA().setup(fitted, ImageClassifier(nn.Flatten(), 10), "fit")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decay": 1}, r"`decay` \(=1\) must be in \[0, 1\)"),
        ({"warmup": "no"}, "`warmup`"),
        ({"every_n_steps": 0}, "`every_n_steps`"),
        ({"start_step": -1}, "`start_step`"),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        EMA(**arguments)


def test_callbacks_ema_adds_ema_to_the_defaults(tmp_path, run_main, short):
    code, error = run_main(
        *short, "callbacks=ema", "callbacks.ema.decay=0.9", "lr_scheduler=constant"
    )
    assert code == 0, error
    (best,) = tmp_path.rglob("best.ckpt")
    saved = torch.load(best, weights_only=True)
    assert saved["averaging_state"]["n_averaged"] == 2
    assert (best.parent.parent / "excitation").is_dir()
