"""A run's classes and images are part of its checkpoints."""

import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, ImageFolderDataModule, MNISTDataModule
from se_lightning.checkpoint import datamodule_from, read_checkpoint


@pytest.fixture
def root(tmp_path, write_jpeg):
    """Create root/{ant,bee,cat}/*.jpg, 20 images each, with no splits."""
    for number in range(60):
        write_jpeg(
            tmp_path / "root" / ("ant", "bee", "cat")[number % 3] / f"{number:02}.jpg", number
        )
    return tmp_path / "root"


def folder(root, **options):
    given = {"val_fraction": 0.2, "test_fraction": 0.2, "image_size": 16, "num_workers": 0}
    return ImageFolderDataModule(str(root), batch_size=10, **given | options)


def trainer(tmp_path, epochs=1):
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def network(size, classes):
    backbone = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
    backbone(torch.zeros(1, *size))
    return ImageClassifier(backbone, classes, channels_last=False)


def trained(data, tmp_path, size=(3, 16, 16), classes=3):
    fitting = trainer(tmp_path)
    fitting.fit(network(size, classes), data)
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def resume(path, data, tmp_path):
    trainer(tmp_path, 2).fit(network((3, 16, 16), 3), data, ckpt_path=path, weights_only=True)


def add(root):
    for number in range(10):
        shutil.copy(root / "ant" / "00.jpg", root / "ant" / f"00_{number}.jpg")


def rename_image(root):
    (root / "ant" / "00.jpg").rename(root / "ant" / "0.jpg")


def rename_class(root):
    (root / "ant").rename(root / "dog")


CHANGES = {
    "added": (add, r"images are not those of the checkpoint: \d+ instead of \d+\."),
    "removed": (lambda root: (root / "bee" / "01.jpg").unlink(), r"images are not those"),
    "renamed": (rename_image, "images are not those"),
    "class": (rename_class, r"missing: ant; new: dog"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_resume_on_other_data(root, tmp_path, change):
    path = trained(folder(root), tmp_path)
    resume(path, folder(root), tmp_path)
    changed, message = CHANGES[change]
    changed(root)
    with pytest.raises(MisconfigurationException, match=message):
        resume(path, folder(root), tmp_path)


def splits(data):
    data.setup()
    return {
        split: [data.source(split).name(i) for i in range(len(data.labels(split)))]
        for split in ("train", "val", "test")
    }


def test_a_rebuilt_datamodule_refuses_other_data_unless_given_a_root(root, tmp_path, caplog):
    data = folder(root)
    checkpoint = read_checkpoint(trained(data, tmp_path))
    assert splits(datamodule_from(checkpoint)) == splits(data)
    moved = shutil.copytree(root, tmp_path / "moved")
    splits(datamodule_from(checkpoint, root=str(moved)))
    assert "not those of the checkpoint" not in caplog.text
    add(moved)
    splits(datamodule_from(checkpoint, root=str(moved)))
    assert "images are not those of the checkpoint" in caplog.text
    for changed, message in CHANGES.values():
        again = shutil.copytree(root, tmp_path / "again")
        changed(root)
        with pytest.raises(MisconfigurationException, match=message):
            splits(datamodule_from(checkpoint))
        shutil.rmtree(root)
        again.rename(root)
    rename_class(moved)
    with pytest.raises(MisconfigurationException, match="missing: ant; new: dog"):
        splits(datamodule_from(checkpoint, root=str(moved)))


def test_another_split_seed_is_refused(root, tmp_path):
    checkpoint = read_checkpoint(trained(folder(root), tmp_path))
    with pytest.raises(MisconfigurationException, match="images are not those"):
        datamodule_from(checkpoint, split_seed=1).setup("test")


def test_only_the_splits_in_use_are_compared(tmp_path, image_root):
    data = ImageFolderDataModule(str(image_root), image_size=16, batch_size=10, num_workers=0)
    checkpoint = read_checkpoint(trained(data, tmp_path))
    shutil.copy(image_root / "train" / "cat" / "00.jpg", image_root / "train" / "cat" / "new.jpg")
    rebuilt = datamodule_from(checkpoint)
    rebuilt.setup("validate")
    with pytest.raises(MisconfigurationException, match=r"train images .* 25 instead of 24"):
        rebuilt.setup("fit")


def test_a_test_in_python_may_use_other_images_but_not_other_classes(root, tmp_path, caplog):
    path = trained(folder(root), tmp_path)
    add(root)
    model = network((3, 16, 16), 3)
    trainer(tmp_path).test(model, folder(root), ckpt_path=path, weights_only=True, verbose=False)
    assert "images are not those of the checkpoint" in caplog.text
    rename_class(root)
    with pytest.raises(MisconfigurationException, match="missing: ant; new: dog"):
        trainer(tmp_path).test(model, folder(root), ckpt_path=path, weights_only=True)


def test_a_checkpoint_of_version_0_1_0_keeps_its_split(root, tmp_path):
    data = folder(root)
    data._split_by = "position"
    path = trained(data, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["ImageFolderDataModule"]
    assert state["split_by"] == "position"
    assert splits(datamodule_from(checkpoint)) == splits(data) != splits(folder(root))
    del state["split_by"], state["data"]
    torch.save(checkpoint, path)
    assert splits(datamodule_from(checkpoint)) == splits(data)
    resumed = folder(root)
    resume(path, resumed, tmp_path)
    assert splits(resumed) == splits(data)


def test_the_record_is_small_and_readable_without_code(root, tmp_path):
    os_name = b"caf\xe9".decode(errors="surrogateescape")
    (root / "ant").rename(root / os_name)
    checkpoint = read_checkpoint(trained(folder(root), tmp_path))
    record = checkpoint["ImageFolderDataModule"]["data"]
    assert record["class_names"] == ["bee", os_name, "cat"]
    assert len(repr(record["splits"])) < 600
    datamodule_from(checkpoint).setup("test")


@pytest.mark.parametrize("record", [{}, None, {"class_names": ["a"], "splits": {"test": 3}}])
def test_a_damaged_record_is_refused(root, tmp_path, record):
    checkpoint = read_checkpoint(trained(folder(root), tmp_path))
    checkpoint["ImageFolderDataModule"]["data"] = record
    with pytest.raises(ValueError, match="record of its data is damaged"):
        datamodule_from(checkpoint)


def test_other_mnist_files_or_another_val_size_are_refused(idx_root, tmp_path, write_idx):
    options = {"root": str(idx_root), "val_size": 20, "batch_size": 10}
    path = trained(MNISTDataModule(**options), tmp_path, (1, 28, 28), 10)
    checkpoint = read_checkpoint(path)
    datamodule_from(checkpoint).setup()
    with pytest.raises(MisconfigurationException, match=r"train images .* 80 instead of 100"):
        datamodule_from(checkpoint, val_size=40).setup("fit")
    labels = np.arange(101) % 10
    write_idx(idx_root / "t10k-labels-idx1-ubyte", labels[::-1])
    datamodule_from(checkpoint).setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"test images .* 101 as before, but others"
    ):
        datamodule_from(checkpoint).setup("test")


def test_a_checkpoint_without_a_record_is_accepted(tmp_path):
    path = trained(DigitsDataModule(num_workers=0), tmp_path, (1, 32, 32), 10)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["DigitsDataModule"]["data"]
    datamodule_from(checkpoint).setup("test")
