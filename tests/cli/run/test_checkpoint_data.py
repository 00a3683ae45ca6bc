"""What the command line says of data goes on top of a checkpoint's data."""

import functools
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from se_lightning import (
    DigitsDataModule,
    FakeDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    SEResNetModule,
)
from se_lightning.cli.command import Command
from se_lightning.cli.run import checkpoint_data
from se_lightning.cli.run import run as run_module
from se_lightning.cli.schema import make
from se_lightning.lightning import Trainer


def save(path, data):
    """Write the checkpoint of a training step on these data."""
    data.setup()
    model = SEResNetModule(
        depth=20, ratio=4, num_classes=data.num_classes, in_channels=data.in_channels
    )
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Create train/ and val/ with 8 and 4 images of each of three classes."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog", "eel"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (70, 60), (i * 30, 9, 80)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """A checkpoint of images of 64 pixels, with options that differ from the defaults."""
    options = {"batch_size": 4, "eval_batch_size": 5, "interpolation": "bicubic", "num_workers": 0}
    data = ImageFolderDataModule(str(images), image_size=64, eval_resize=64, **options)
    return save(tmp_path_factory.mktemp("run") / "folder.ckpt", data)


@pytest.fixture
def logged(tmp_path):
    """Read the logs of all runs in the test's folder; Hydra replaces pytest's handlers."""
    return lambda: "".join(path.read_text() for path in tmp_path.rglob("se_lightning.log"))


@pytest.fixture
def seen(run_main, monkeypatch):
    """Run a task, and return the datamodule that it gets, or the message of its refusal."""

    def run(*arguments):
        found = []

        def spy(*args, **kwargs):
            found.extend(each for each in (*args, *kwargs.values()) if hasattr(each, "class_names"))
            return {}

        def make_spy(node, name, kind, **more):
            made = make(node, name, kind, **more)
            return functools.wraps(made.func)(spy) if name == "task" else made

        monkeypatch.setattr(run_module, "make", make_spy)
        code, message = run_main(*arguments, "trainer.accelerator=cpu")
        return found[0] if code == 0 else message

    return run


TASKS = ("test", "analyze", "what_if", "look", "fold", "export", "compare")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_what_is_not_said(seen, folder, images, tmp_path, task):
    new = shutil.copytree(images, tmp_path / "new")
    path = f"[{folder},{folder}]" if task == "compare" else folder
    same = ("data=image_folder", f"data.root={images}")
    for said in ((f"data.root={new}",), *([same] if task in ("test", "look", "compare") else [])):
        data = seen(f"task={task}", f"ckpt_path={path}", *said)
        assert type(data) is ImageFolderDataModule, data
        kept = ("image_size", "eval_resize", "interpolation", "batch_size", "eval_batch_size")
        assert [data.hparams[k] for k in kept] == [64, 64, "bicubic", 4, 5]
        assert str(data.root) == said[-1].partition("=")[2]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("data.image_size=32 data.eval_resize=null", {"image_size": 32, "eval_resize": None}),
        ("+data.image_size=48 ++data.eval_resize=50", {"image_size": 48, "eval_resize": 50}),
        ("data=image_folder data.eval_batch_size=2", {"eval_batch_size": 2, "image_size": 64}),
        ("data.on_error=skip data.seed=3", {"on_error": "skip", "seed": 3, "image_size": 64}),
    ],
)
def test_what_is_said_wins(seen, folder, said, expected, logged):
    data = seen("task=test", f"ckpt_path={folder}", *said.split())
    assert {key: data.hparams[key] for key in expected} == expected
    assert ("Trained on images of 64 pixels" in logged()) == (expected.get("image_size", 64) != 64)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("data.image_sise=32", r"has no `image_sise`. Did you mean `data.image_size`?"),
        ("data.val_size=32", "ImageFolderDataModule, the checkpoint's data, has no `val_size`"),
        ("data.image_size=large", "data: `image_size` (='large') must be a whole number"),
        ("data.root=nowhere", "nowhere is not a folder"),
        ("data=fake data.in_channels=1", "takes 3 channels, but the images have 1"),
        ("data=fake data.num_classes=7", "has 3 classes, but the data have 7"),
        ("data=digits", "has 3 classes, but the data have 10"),
    ],
)
def test_what_does_not_fit_is_refused(seen, folder, said, message):
    error = seen("task=test", f"ckpt_path={folder}", *said.split())
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_data_of_another_kind_keep_size_channels_classes_and_statistics(seen, folder, logged):
    data = seen("task=test", f"ckpt_path={folder}", "data=fake")
    assert type(data) is FakeDataModule
    assert (data.image_size, data.in_channels, data.num_classes) == (64, 3, 3)
    assert (data.mean, data.std) == (ImageFolderDataModule.mean, ImageFolderDataModule.std)
    assert "instead of cat" in logged()
    batch, _ = next(iter(data.test_dataloader()))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (data.mean, data.std))
    assert ((batch * std + mean) * 255).round().sub((batch * std + mean) * 255).abs().max() < 1e-3


def test_a_size_that_cannot_be_kept_is_a_warning(seen, tmp_path, idx_root, logged):
    path = save(tmp_path / "digits.ckpt", DigitsDataModule(num_workers=0))
    data = seen("task=test", f"ckpt_path={path}", "data=mnist", f"data.root={idx_root}",
                "data.val_size=20")  # fmt: skip
    assert type(data) is MNISTDataModule
    assert "Trained on images of 32 pixels, run on 28 pixels." in logged()
    assert data.mean == DigitsDataModule.mean


def test_another_set_of_the_same_class_is_refused(seen, tmp_path, idx_root):
    path = save(tmp_path / "m.ckpt", MNISTDataModule("mnist", str(idx_root), val_size=20))
    same = seen("task=test", f"ckpt_path={path}", "data=mnist")
    assert (same.hparams.val_size, str(same.root)) == (20, str(idx_root))
    others = ("data=fashion_mnist", f"data.root={idx_root}", "data.val_size=20")
    error = seen("task=test", f"ckpt_path={path}", *others)
    assert "does not have the 10 classes of the checkpoint" in error


def test_an_experiment_says_only_what_it_changes(seen, tmp_path, idx_root):
    path = save(
        tmp_path / "f.ckpt",
        MNISTDataModule("fashion_mnist", str(idx_root), val_size=20, crop_padding=1),
    )
    data = seen("task=test", f"ckpt_path={path}", "experiment=fashion_mnist_quick")
    assert (str(data.root), data.hparams.val_size, data.hparams.crop_padding) == (
        str(idx_root), 20, 1,
    )  # fmt: skip


def test_two_checkpoints_of_other_sizes_are_compared_with_a_warning(
    seen, folder, images, tmp_path, logged
):
    other = save(
        tmp_path / "o.ckpt",
        ImageFolderDataModule(str(images), image_size=48, batch_size=4, num_workers=0),
    )
    data = seen("task=compare", f"ckpt_path=[{folder},{other}]")
    assert data.image_size == 64
    assert "Trained on images of 48 pixels, run on 64 pixels." in logged()


def test_the_logged_config_has_the_checkpoints_data(folder, monkeypatch, run_main, tmp_path):
    recorded = []
    real = checkpoint_data.record_data

    def record(cfg, found):
        real(cfg, found)
        recorded.append(OmegaConf.to_container(cfg.data))

    monkeypatch.setattr("se_lightning.cli.run.build.record_data", record)
    code, message = run_main("task=test", f"ckpt_path={folder}", "trainer.accelerator=cpu")
    assert code == 0, message
    (data,) = recorded
    assert data["_target_"].endswith("ImageFolderDataModule")
    assert (data["image_size"], data["eval_batch_size"]) == (64, 5)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("task=test ckpt_path=a data.root=x +data.flip=true", "++data.root=x ++data.flip=true"),
        ("task=test ckpt_path=a.ckpt data=fake data.size=3", "data=fake data.size=3"),
        ("ckpt_path=a.ckpt data.root=x", "data.root=x"),
        ("task=fit ckpt_path=a.ckpt data.root=x", "data.root=x"),
        ("task=look data.root=x", "data.root=x"),
    ],
)  # fmt: skip
def test_only_tasks_on_a_checkpoint_take_its_options(line, expected):
    overrides = Command.parse(line.split()).overrides
    assert " ".join(o for o in overrides if "data" in o) == expected
