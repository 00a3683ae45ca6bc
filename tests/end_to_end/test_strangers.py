"""Other people's networks, modules, data and parts of training, from the command line."""

import json
import sys

import pytest
import torch
from pytorch_lightning import Trainer

CODE = '''
import os, pathlib
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from se_lightning import ImageClassifier, SEResNetModule


def net(width=4, num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )


class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(*net(width))


class Lit(pl.LightningModule):
    """As in Lightning's examples: names with underscores, an optimizer of its own."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"])
        self.net = net()

    def forward(self, x):
        return self.net(x)

    def step(self, batch, name):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_loss")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test_loss")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class Template(Lit):
    """As in lightning-hydra-template: a network, an optimizer and a scheduler from the config."""

    def __init__(self, net, optimizer, scheduler=None):
        super().__init__()
        self.net, self.make = net, optimizer

    def configure_optimizers(self):
        return self.make(params=self.parameters())


class Silent(Lit):
    """Logs nothing, and has no test."""

    test_step = pl.LightningModule.test_step

    def step(self, batch, name):
        return F.cross_entropy(self(batch[0]), batch[1])


class Wide(SEResNetModule):
    """A loss of its own, and options that it passes on."""

    def __init__(self, factor=3.0, **options):
        super().__init__(**options)
        self.factor = factor

    def _loss(self, logits, labels):
        return self.factor * super()._loss(logits, labels)


class Ids(Lit):
    """Writes down which samples each rank sees."""

    def step(self, batch, name):
        with open(pathlib.Path(os.environ["SEEN"]) / f"{name}-{self.global_rank}", "a") as file:
            file.write(" ".join(str(int(v)) for v in batch[0][:, 0, 0, 0]) + "\\n")
        return super().step(batch, name)


class Data(pl.LightningDataModule):
    """Knows nothing of this package."""

    def __init__(self, batch_size=4):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        images = torch.arange(48.0).reshape(-1, 1, 1, 1).expand(-1, 1, 16, 16).clone()
        self.parts = torch.utils.data.random_split(
            TensorDataset(images, torch.arange(48) % 10), [24, 16, 8],
            torch.Generator().manual_seed(0),
        )

    def train_dataloader(self):
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.parts[2], self.batch_size)


class Named(TensorDataset):
    classes = list("abcdefghij")


class Folders(Data):
    """Its data set has classes, as torchvision's have."""

    def setup(self, stage=None):
        super().setup(stage)
        images, labels = torch.rand(48, 1, 32, 32), torch.arange(48) % 10
        self.parts = random_split(Named(images, labels), [24, 16, 8])


class Seeded(Data):
    seen = []

    def __init__(self, batch_size=4, seed=-1):
        super().__init__(batch_size)
        self.num_classes = 10
        self.seen.append(seed)


class Note(pl.Callback):
    def __init__(self, text="noted"):
        self.text = text

    def on_train_end(self, trainer, module):
        pathlib.Path("note.txt").write_text(self.text)


class Halved(torch.optim.SGD):
    """An optimizer of one's own."""

    def __init__(self, params, speed=0.1):
        super().__init__(params, lr=speed / 2)


def halving(optimizer, total_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * total_steps))
'''
RUN = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2", "trainer.accelerator=cpu", "hydra.run.dir=run",
)  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write the code above and return a function that writes options of one's own."""
    (tmp_path / "strange.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange", raising=False)

    def write(option: str, text: str) -> None:
        path = tmp_path / "conf" / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("model/lit", "_target_: strange.Lit\n")
    return write


@pytest.fixture
def train(run_main, tmp_path, mine):
    """Train with options of one's own; return the result."""

    def run(*arguments: str) -> dict:
        code, error = run_main("--config-dir", "conf", *RUN, *arguments)
        assert code == 0, error[-3000:]
        return json.loads((tmp_path / "run" / "result.json").read_text())

    return run


def test_two_ranks_share_the_samples_of_a_strangers_datamodule(cli, mine, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()
    mine("model/ids", "_target_: strange.Ids\n")
    mine("data/mine", "_target_: strange.Data\n")
    cli(
        "--config-dir", "conf", "model=ids", "data=mine", "trainer.devices=2", "logger=csv",
        "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.num_sanity_val_steps=0",
        env={"SEEN": str(seen), "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    found = {}
    for name, count in {"train_loss": 24, "val_loss": 16, "test_loss": 8}.items():
        ranks = [(seen / f"{name}-{rank}").read_text().split() for rank in (0, 1)]
        assert [len(rank) for rank in ranks] == [count // 2, count // 2]
        found[name] = {*ranks[0], *ranks[1]}
        assert len(found[name]) == count
    assert set.union(*found.values()) == set(map(str, range(48)))


NETWORKS = {
    "a function": "backbone:\n  _target_: strange.net\n",
    "a class": "backbone:\n  _target_: strange.Net\n  width: 6\n",
    "layers": "backbone:\n  _target_: torch.nn.Sequential\n  _args_:\n"
    "    - _target_: torch.nn.Flatten\n    - _target_: torch.nn.Linear\n"
    "      in_features: 1024\n      out_features: 10\n",
    "told the classes": "backbone:\n  _target_: strange.net\n  num_classes: ${model.num_classes}\n",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_ones_own_trains_in_an_image_classifier(train, mine, name):
    mine("model/mine", f"_target_: se_lightning.ImageClassifier\nnum_classes: 10\n{NETWORKS[name]}")
    found = train("model=mine", "callbacks=none", "lr_scheduler=constant")
    assert 0 <= found["metrics"]["test/acc1"] <= 1
    assert found["model"] == "mine"


MODULES = {
    "lit": ("_target_: strange.Lit\n", ["model.lr=0.5"], "test_loss"),
    "template": (
        "_target_: strange.Template\nnet:\n  _target_: strange.net\n",
        ["optimizer=adamw", "optimizer.lr=1e-3", "~data.seed"],
        "test_loss",
    ),
    "silent": ("_target_: strange.Silent\n", [], None),
    "wide": (
        "_target_: strange.Wide\ndepth: [1, 1]\nwidths: [8, 16]\nratio: 4\n",
        ["model.factor=2", "lr_scheduler=constant"],
        "test/acc1",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_any_lightning_module_trains_with_the_default_callbacks(train, mine, tmp_path, name):
    text, more, metric = MODULES[name]
    mine("model/mine", text)
    more = [f"+{each}" if "model." in each else each for each in more]
    found = train("model=mine", *more)
    assert metric is None or metric in found["metrics"]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_an_optimizer_a_schedule_and_a_callback_of_ones_own_train(train, mine, tmp_path):
    mine("optimizer/halved", "_target_: strange.Halved\n_partial_: true\nspeed: 0.2\n")
    mine("lr_scheduler/halving", "_target_: strange.halving\n_partial_: true\n")
    mine("callbacks/note", "note:\n  _target_: strange.Note\n  text: mine\n")
    train("optimizer=halved", "lr_scheduler=halving", "callbacks=[default,note]")
    assert (tmp_path / "note.txt").read_text() == "mine"
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (group, *_) = saved["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == pytest.approx(0.1)
    assert group["lr"] == pytest.approx(0.05)  # 1 - 2 / (2 * 2) after both steps


DATA = {
    "no classes": ("_target_: strange.Data\n", ["model.num_classes=10"]),
    "classes of its data set": ("_target_: strange.Folders\nbatch_size: 6\n", []),
    "a seed": ("_target_: strange.Seeded\n", ["seed=5"]),
    "a seed of its own": ("_target_: strange.Seeded\nseed: 7\n", ["seed=5"]),
}


@pytest.mark.parametrize("name", DATA)
def test_a_datamodule_gets_what_its_signature_takes(train, mine, tmp_path, name):
    text, more = DATA[name]
    mine("data/mine", text)
    found = train("data=mine", "callbacks=none", "lr_scheduler=constant", *more)
    assert found["metrics"]["test/loss"] > 0
    assert found["data"] == "mine"
    assert found["batch_size"] == (6 if "6" in text else 4)


def test_data_without_classes_are_refused_with_the_way_out(run_main, mine):
    mine("data/mine", "_target_: strange.Data\n")
    code, error = run_main("--config-dir", "conf", *RUN, "data=mine")
    assert code == 1
    assert "Data has no attribute `num_classes`, which the model needs: pass model.num" in error


@pytest.mark.parametrize(("text", "seed"), [("", 5), ("seed: 7\n", 7), ("seed: 0\n", 0)])
def test_a_seed_reaches_data_that_take_one(train, mine, text, seed):
    mine("data/mine", f"_target_: strange.Seeded\n{text}")
    train("data=mine", "model=lit", "seed=5", "callbacks=none")
    assert sys.modules["strange"].Seeded.seen == [seed]


FOREIGN = {
    "a backbone": (
        "_target_: se_lightning.ImageClassifier\nbackbone:\n  _target_: strange.Net\n",
        1,
    ),
    "a loss of its own": (
        "_target_: strange.Wide\ndepth: [1, 1]\nwidths: [8, 16]\nratio: 4\nfactor: 2.0\n",
        1,
    ),
    "a module": ("_target_: strange.Lit\nlr: 0.2\n", 0),
    "nested parts": (
        "_target_: strange.Template\nnet:\n  _target_: strange.Net\n  width: 3\n",
        1,
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_task_test_reads_a_foreign_checkpoint_again(train, mine, run_main, tmp_path, name):
    text, scheduled = FOREIGN[name]
    mine("model/mine", text)
    mine("data/mine", "_target_: strange.Seeded\nbatch_size: 6\n")
    more = ["lr_scheduler=constant"] if scheduled and "Template" not in text else []
    trained = train("model=mine", "data=mine", *more)["metrics"]
    best = "ckpt_path=run/checkpoints/best.ckpt"
    tests = {
        "alone": ["task=test", best],
        "named": ["--config-dir", "conf", "task=test", best, "model=mine", "data=mine"],
    }
    for folder, arguments in tests.items():
        code, error = run_main(*arguments, *RUN[:-1], f"hydra.run.dir={folder}")
        assert code == 0, error
        again = json.loads((tmp_path / folder / "result.json").read_text())["metrics"]
        assert again == {key: value for key, value in trained.items() if key.startswith("test")}
        assert again


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_run_resumes(train, mine, run_main, tmp_path, name):
    text, scheduled = FOREIGN[name]
    mine("model/mine", text)
    more = ["lr_scheduler=constant"] if scheduled and "Template" not in text else []
    train("model=mine", *more)
    before = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    (tmp_path / "run" / "result.json").unlink()
    code, error = run_main("resume=run", "trainer.max_epochs=2", more=())
    assert code == 0, error
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == 2 * before["global_step"] == 4
    keys = [key for key in before["callbacks"] if key.startswith("ModelCheckpoint")]
    assert len(keys) == 1
    assert "'monitor': 'val/loss'" in keys[0]
    assert keys[0] in after["callbacks"]


def test_a_checkpoint_calls_functions_only_if_trusted(train, mine, run_main):
    mine(
        "model/mine",
        "_target_: se_lightning.ImageClassifier\nbackbone:\n  _target_: strange.net\n",
    )
    train("model=mine", "lr_scheduler=constant", "callbacks.class_selectivity=null")
    arguments = ["task=test", "ckpt_path=run/checkpoints/best.ckpt", *RUN[:-1]]
    code, error = run_main(*arguments)
    assert code == 1
    assert "`model.backbone._target_` (='strange.net') comes from the checkpoint" in error
    assert "pass trust=true, or model=NAME as in training" in error
    code, error = run_main(*arguments, "trust=true")
    assert code == 0, error


def test_a_plain_lightning_checkpoint_is_read_with_its_module(mine, run_main, tmp_path):
    code, error = run_main("--config-dir", "conf", *RUN, "model=lit", "callbacks=none")
    module = sys.modules["strange"].Lit(lr=0.3)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, logger=False, accelerator="cpu",
                      default_root_dir=tmp_path, enable_progress_bar=False,
                      enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    arguments = ["--config-dir", "conf", "task=test", "ckpt_path=plain.ckpt", "data=digits"]
    code, error = run_main(*arguments, "model=lit", *RUN[:-1])
    assert code == 0, error
    code, error = run_main(*arguments, *RUN[:-1])
    assert code == 1
    assert "was not written by a module of se_lightning" in error
