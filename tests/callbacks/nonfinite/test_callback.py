import csv
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

from se_lightning import DigitsDataModule, ImageClassifier, NonFinite, NonFiniteError
from se_lightning.callbacks.nonfinite.watch import Watch
from se_lightning.models import se_resnet20

BATCH = 32


class Spoilt(Dataset):
    """The batches of another data set, with NaN in the images of some samples in one epoch."""

    def __init__(self, batches, samples, epoch):
        self.batches, self.samples, self.epoch = batches, samples, epoch

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, item):
        epoch, keys = item
        images, labels = self.batches[item]
        if epoch == self.epoch:
            images[np.isin(keys, self.samples)] = math.nan
        return images, labels


class SpoiltDigits(DigitsDataModule):
    samples: tuple[int, ...] = ()
    epoch = 0

    def dataset(self, split, *, augmented):
        found = super().dataset(split, augmented=augmented)
        return Spoilt(found, self.samples, self.epoch) if augmented else found


def digits(samples=(), epoch=0, **options):
    data = SpoiltDigits(batch_size=BATCH, eval_batch_size=200, seed=3, **options)
    data.samples, data.epoch = samples, epoch
    return data


def order(epoch, seed=3):
    """Return the samples of each batch, by the documented rule."""
    data = digits()
    data.setup()
    size = len(data.labels("train"))
    indices = np.random.default_rng((seed, epoch)).permutation(size)
    return [indices[start : start + BATCH].tolist() for start in range(0, size, BATCH)]


def network(seed=0, **options):
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    backbone = se_resnet20(num_classes=10, in_channels=1, ratio=4)
    return ImageClassifier(backbone, 10, optimizer=optimizer, **options)


def trainer(folder, *callbacks, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "limit_train_batches": 6}
    defaults |= {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    quiet["callbacks"] = list(callbacks)
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def records(folder):
    return json.loads((folder / "nonfinite.json").read_text())


def finite(state):
    return all(bool(value.isfinite().all()) for value in state.values())


def test_a_nan_image_is_reported_with_its_sample_before_any_weight_changes(tmp_path):
    batches = order(epoch=1)
    sample = batches[3][17]
    saver = ModelCheckpoint(tmp_path, filename="good", save_last=True)
    fitted = trainer(
        tmp_path,
        NonFinite(),
        saver,
        max_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        deterministic=True,
    )
    model = network()
    with pytest.raises(NonFiniteError, match=f"sample {sample}") as error:
        fitted.fit(model, datamodule=digits((sample,), epoch=1))

    (record,) = records(tmp_path)
    assert (record["epoch"], record["step"], record["batches"]) == (1, 4, [2, 3])
    (rank,) = record["ranks"]
    assert rank["samples"] == batches[2] + batches[3]
    assert (rank["bad_samples"], rank["bad_rows"], rank["loss"]) == ([sample], [17], "nan")
    assert rank["output"] == "backbone.conv1"
    assert record["action"] == "stopped"
    for word in ("step 4 (epoch 1, batches 2 to 3)", "last.ckpt", f"resume={tmp_path}"):
        assert word in str(error.value)
    assert finite(dict(model.named_parameters()))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert finite(saved["state_dict"])


def test_a_nan_weight_is_reported_with_its_layer(tmp_path):
    model = network()
    with torch.no_grad():
        model.backbone.layer2[1].conv1.weight[0, 0, 0, 0] = math.nan
    where = "backbone.layer2.1.conv1"
    with pytest.raises(NonFiniteError, match=rf"not finite: {where}\. .*{where}\.weight"):
        trainer(tmp_path, NonFinite()).fit(model, datamodule=digits())
    (record,) = records(tmp_path)
    assert record["weights"] == [f"{where}.weight"]
    assert record["ranks"][0]["bad_samples"] == []


class Infinite(ImageClassifier):
    """Its loss is infinite in one step, with finite gradients."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + (math.inf if batch_idx == 2 else 0)


def test_an_infinite_loss_with_finite_gradients_stops_the_run(tmp_path):
    torch.manual_seed(0)
    model = Infinite(se_resnet20(num_classes=10, in_channels=1, ratio=4), 10)
    with pytest.raises(NonFiniteError, match=r"The loss is inf at step 2 \(epoch 0, batch 2\)"):
        trainer(tmp_path, NonFinite()).fit(model, datamodule=digits())
    (record,) = records(tmp_path)
    assert record["parameters"] == []


def test_a_bad_gradient_of_a_finite_loss_is_reported_with_its_layer(tmp_path):
    model = network()
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (math.inf if len(calls) == 3 else 1)

    model.backbone.layer3[0].conv2.weight.register_hook(spoil)
    match = r"The loss is finite, but gradients are not at step 2 .*: backbone.layer3.0.conv2"
    with pytest.raises(NonFiniteError, match=match):
        trainer(tmp_path, NonFinite()).fit(model, datamodule=digits())
    (record,) = records(tmp_path)
    assert record["parameters"] == ["backbone.layer3.0.conv2.weight"]
    assert isinstance(record["ranks"][0]["loss"], float)


def test_gradients_whose_squares_overflow_are_finite(tmp_path):
    model = network()
    model.backbone.conv1.weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    trainer(tmp_path, NonFinite(), limit_train_batches=2).fit(model, datamodule=digits())
    assert not (tmp_path / "nonfinite.json").exists()


def by_hand(batches, left_out):
    """Train in plain PyTorch with two batches per step, leaving out some steps."""
    model = network()
    backbone = model.backbone.train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(len(batches) // 2):
        if step in left_out:
            continue
        optimizer.zero_grad()
        for images, labels in batches[2 * step : 2 * step + 2]:
            images = images.contiguous(memory_format=torch.channels_last)
            (F.cross_entropy(backbone(images), labels) / 2).backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
    return backbone.state_dict()


def test_a_skipped_step_leaves_no_trace_in_weights_optimizer_and_statistics(tmp_path):
    """The oracle gets none of the batches of that step, not even the good ones."""
    model = network()
    callback = NonFinite("skip")
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "limit_train_batches": 8}
    spoilt = digits((order(epoch=0)[3][5],))
    trainer(tmp_path, callback, **options).fit(model, datamodule=spoilt)

    clean = digits()
    clean.setup()
    batches = list(clean.train_dataloader())[:8]
    wanted = by_hand(batches, left_out={1})
    assert (callback.skipped, callback.last_skipped) == (1, 1)
    found = model.backbone.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    without = by_hand(batches, left_out=set())
    assert not torch.equal(found["conv1.weight"], without["conv1.weight"])


def test_skips_are_counted_logged_and_saved(tmp_path):
    batches = order(epoch=0)
    callback = NonFinite("skip")
    saver = ModelCheckpoint(tmp_path, save_last=True)
    logger = CSVLogger(tmp_path, name="", version="")
    fitted = trainer(tmp_path, callback, saver, logger=logger)
    fitted.fit(network(), datamodule=digits((batches[1][0], batches[4][9])))
    assert fitted.callback_metrics["train/skipped_steps"] == 2
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["step"], row["train/skipped_steps"]) for row in csv.DictReader(file)]
    assert [row for row in rows if row[1]][:2] == [("1", "1.0"), ("4", "2.0")]
    assert [(r["action"], r["step"]) for r in records(tmp_path)] == [("skipped", 1), ("skipped", 4)]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (state,) = (v for k, v in saved["callbacks"].items() if k.startswith("NonFinite"))
    assert state == {"skipped": 2, "last": 4, "in_a_row": 0}

    again = NonFinite("skip")
    more = trainer(tmp_path, again, ModelCheckpoint(tmp_path, save_last=True), max_epochs=2)
    more.fit(network(1), datamodule=digits(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.skipped == 2


def test_a_number_of_bad_steps_in_a_row_stops_the_run(tmp_path):
    batches = order(epoch=0)
    bad = [batches[number][0] for number in (0, 2, 3, 4)]
    callback = NonFinite("skip", patience=3)
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        trainer(tmp_path, callback).fit(network(), datamodule=digits(tuple(bad)))
    assert [record["step"] for record in records(tmp_path)] == [0, 2, 3, 4]


class Late(NonFinite):
    """Reads every few steps, as on a GPU."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self._keeps_batch = False
        self._every = trainer.log_every_n_steps


class Waits(TorchDispatchMode):
    """Counts operations that would synchronize with a GPU: values read by Python or the CPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal")
        return func(*args, **(kwargs or {}))


class Counted(Late):
    def __init__(self):
        super().__init__()
        self.waits = []

    def on_before_backward(self, *arguments):
        with Waits() as mode:
            super().on_before_backward(*arguments)
        self.waits.append(mode.count)

    def on_before_optimizer_step(self, *arguments):
        with Waits() as mode:
            super().on_before_optimizer_step(*arguments)
        self.waits.append(mode.count)


def test_only_every_nth_step_synchronizes_with_the_device(tmp_path):
    callback = Counted()
    fitted = trainer(tmp_path, callback, log_every_n_steps=3)
    fitted.fit(network(), datamodule=digits())
    losses, steps = callback.waits[::2], callback.waits[1::2]
    assert losses == [0] * 6
    assert [count > 0 for count in steps] == [False, False, True] * 2


@pytest.mark.gpu
def test_a_step_does_not_synchronize_with_the_gpu():
    """Torch raises an error on any synchronization."""
    model = network().cuda()
    watch = Watch(model, torch.device("cuda"))
    for _ in range(2):
        loss = model(torch.randn(8, 1, 32, 32, device="cuda")).square().mean()
        loss.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            watch.see_loss(loss)
            watch.see_step(gradients=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    model.backbone.fc.weight.grad[0, 0] = math.nan
    watch.see_step(gradients=True)
    found = watch.read(lambda tensor, reduce_op: tensor)
    assert (found.step, found.gradients) == (2, ["backbone.fc.weight"])


def test_a_late_read_reports_the_right_step_and_nothing_bad_is_saved(tmp_path):
    batches = order(epoch=0)
    sample = batches[3][0]
    saver = ModelCheckpoint(
        tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}", save_last=True
    )
    fitted = trainer(tmp_path, Late(), saver, log_every_n_steps=50)
    with pytest.raises(NonFiniteError, match=r"step 3 \(epoch 0, batch 3\)"):
        fitted.fit(network(), datamodule=digits((sample,)))
    (record,) = records(tmp_path)
    assert record["ranks"][0]["samples"] == batches[3]
    assert [path.name for path in tmp_path.glob("*=*.ckpt")] == ["step=2.ckpt"]
    for path in tmp_path.glob("*.ckpt"):
        assert finite(torch.load(path, weights_only=True)["state_dict"])


def test_nothing_is_saved_when_the_run_stops(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_on_exception=True, filename="bad")
    with pytest.raises(NonFiniteError):
        trainer(tmp_path, NonFinite(), saver).fit(
            network(), datamodule=digits((order(epoch=0)[2][0],))
        )
    assert not list(tmp_path.glob("*.ckpt"))


def test_results_are_read_before_a_validation(tmp_path):
    class Validates(Callback):
        started = False

        def on_validation_batch_start(self, *_):
            self.started = True

    seen = Validates()
    with pytest.raises(NonFiniteError, match="step 1 "):
        trainer(tmp_path, Late(), seen).fit(network(), datamodule=digits((order(epoch=0)[1][0],)))
    assert not seen.started


@pytest.mark.parametrize("spoilt", ["gradients", "loss"])
def test_in_fp16_infinite_gradients_are_left_to_the_loss_scaler(tmp_path, spoilt):
    torch.manual_seed(0)
    images = torch.randn(32, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (math.inf if len(calls) == 2 else 1)

    if spoilt == "loss":
        images[20] = math.nan
    else:
        net[1].weight.register_hook(spoil)
    loader = DataLoader(TensorDataset(images, torch.arange(32) % 10), batch_size=8)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fitted = trainer(tmp_path, NonFinite(), plugins=[plugin], limit_train_batches=4)
    if spoilt == "loss":
        with pytest.raises(NonFiniteError, match="The loss is nan at step 2"):
            fitted.fit(ImageClassifier(net, 10), loader)
        return
    fitted.fit(ImageClassifier(net, 10), loader)
    assert scaler.get_scale() == 4.0  # halved after one skipped step
    assert finite(net.state_dict())


def test_samples_of_a_foreign_loader_are_null(tmp_path):
    images = torch.randn(64, 1, 32, 32)
    images[50, 0, 3, 3] = math.nan
    loader = DataLoader(TensorDataset(images, torch.arange(64) % 10), batch_size=32)
    with pytest.raises(NonFiniteError, match="sample 18 of the batch"):
        trainer(tmp_path, NonFinite()).fit(network(), loader)
    (record,) = records(tmp_path)
    assert record["ranks"][0]["samples"] is None
    assert record["ranks"][0]["bad_rows"] == [18]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"action": "ignore"}, r"`action` \(='ignore'\) must be one of stop, skip"),
        ({"patience": 0}, r"`patience` \(=0\)"),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        NonFinite(**arguments)


SPOILER = """
import math
import pytorch_lightning as pl


class Spoiler(pl.Callback):
    def __init__(self, rank, batch):
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_rank, batch_idx) == (self.rank, self.batch):
            batch[0][7] = math.nan
"""


def spoiler(folder, rank, batch):
    (folder / "spoiling.py").write_text(SPOILER)
    node = f"{{_target_:spoiling.Spoiler,rank:{rank},batch:{batch}}}"
    return f"+callbacks.spoiler={node}"


def test_the_command_line_prints_one_message(tmp_path, run_main, short, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code, error = run_main(*short, spoiler(tmp_path, 0, 1), "lr_scheduler=constant")
    assert code == 1
    assert error.splitlines()[-1].startswith("se_lightning: error: The loss is nan at step 1")
    assert "Traceback" not in error
    (path,) = tmp_path.rglob("nonfinite.json")
    assert len(json.loads(path.read_text())) == 1


def test_on_nonfinite_skip_sets_the_action(tmp_path, run_main, short, monkeypatch, result):
    monkeypatch.syspath_prepend(tmp_path)
    arguments = (spoiler(tmp_path, 0, 1), "on_nonfinite=skip", "lr_scheduler=constant")
    code, error = run_main(*short, *arguments)
    assert code == 0, error
    assert result(tmp_path)["metrics"]["train/skipped_steps"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_two_ranks_agree(tmp_path, cli, short, result, action):
    done = cli(
        *short[:1],
        *short[2:],
        "trainer.limit_train_batches=5",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        f"on_nonfinite={action}",
        spoiler(tmp_path, 1, 2),
        "logger=csv",
        check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )
    (path,) = tmp_path.rglob("nonfinite.json")
    (record,) = json.loads(path.read_text())
    assert record["step"] == 2
    first, second = record["ranks"]
    assert (first["bad_rows"], second["bad_rows"]) == (None, [7])
    assert second["bad_samples"] == [second["samples"][7]]
    assert not set(first["samples"]) & set(second["samples"])
    if action == "stop":
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "The loss is nan at step 2 (epoch 0, batch 2) on rank 1" in last
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-2000:]
        assert result(tmp_path)["metrics"]["train/skipped_steps"] == 1
