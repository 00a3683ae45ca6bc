"""Class names and preprocessing are in the checkpoint, so that the file suffices to predict."""

import itertools

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision.transforms import v2

from se_lightning import (
    DigitsDataModule,
    FakeDataModule,
    ImageClassifier,
    ImageFolderDataModule,
    MNISTDataModule,
)


def saved(data, tmp_path):
    """Return the datamodule's entry in a checkpoint."""
    size, channels = data.image_size, data.in_channels
    backbone = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(channels * size**2, data.num_classes)
    )
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        fast_dev_run=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageClassifier(backbone, data.num_classes, channels_last=False), data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    content = torch.load(tmp_path / "net.ckpt", weights_only=True)
    return content[type(data).__name__]


def test_the_checkpoint_of_image_files_suffices_to_prepare_an_image(tmp_path, write_jpeg):
    root = tmp_path / "root"
    for split, number in itertools.product(("train", "val"), range(8)):
        write_jpeg(root / split / ("ant", "bee")[number % 2] / f"{number}.jpg", number)
    data = ImageFolderDataModule(
        str(root), image_size=16, eval_resize=20, interpolation="bicubic", num_workers=0
    )
    state = saved(data, tmp_path)
    assert state["data"]["class_names"] == ["ant", "bee"]
    about = state["preprocessing"]
    prepare = v2.Compose(
        [
            v2.Resize(about["resize"], v2.InterpolationMode(about["interpolation"])),
            v2.CenterCrop(about["image_size"]),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(about["mean"], about["std"]),
        ]
    )
    paths = sorted((root / "val").rglob("*.jpg"))
    by_hand = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    ((images, _),) = data.val_dataloader()
    torch.testing.assert_close(images, by_hand)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DigitsDataModule(), {"image_size": 32, "in_channels": 1, "mean": [0.3049]}),
        (FakeDataModule(image_size=24, num_classes=3), {"image_size": 24, "in_channels": 3}),
    ],
    ids=["digits", "fake"],
)
def test_the_checkpoint_has_the_statistics_of_the_data(data, expected, tmp_path):
    state = saved(data, tmp_path)
    assert expected.items() <= state["preprocessing"].items()
    assert len(state["preprocessing"]["std"]) == 1  # the same for each channel
    assert state["data"]["class_names"] == list(map(str, data.class_names))


def test_mnists_entry_has_its_statistics(idx_root):
    about = MNISTDataModule("mnist", str(idx_root)).preprocessing
    # Published with LeCun et al.'s files, as in PyTorch's MNIST example.
    assert about["mean"] == pytest.approx([0.1307], abs=1e-4)
    assert about["std"] == pytest.approx([0.3081], abs=1e-4)
