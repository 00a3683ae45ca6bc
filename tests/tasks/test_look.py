import csv

import pytest
import torch
from matplotlib.image import imread

from se_lightning import DigitsDataModule, FakeDataModule
from se_lightning.data.samplers import unpack
from se_lightning.tasks import look
from se_lightning.tasks.look import _caption, _first_images


def test_it_draws_what_the_network_sees_and_counts_the_classes(run_main, tmp_path, image_root):
    code, message = run_main(
        "task=look",
        "data=image_folder",
        f"data.root={image_root}",
        "data.image_size=32",
        "data.num_workers=0",
        "data.mixup=0.2",
        "task.images=12",
        "hydra.run.dir=run",
    )
    assert code == 0, message
    with (tmp_path / "run" / "class_counts.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "train", "val", "test"],
        *([c, "8", "3", "3"] for c in ["cat", "dog", "eel"]),
    ]
    for name in ("look.png", "class_counts.png"):
        assert imread(tmp_path / "run" / name).std() > 0.05


def test_its_pixels_are_those_of_the_training_batches():
    data = FakeDataModule(size=20, batch_size=8, crop_padding=4, flip=True)
    data.setup()
    pixels, labels = _first_images(data, 12, epoch=3)
    order = data.train_dataloader(epoch=3).sampler
    keys = unpack(list(order))[1][:12]
    images = data._splits["train"][0][keys]
    assert torch.equal(pixels, data.crop_flip(images, 3, keys))
    assert torch.equal(labels, data._splits["train"][1][keys])


def test_a_mixed_label_names_its_parts():
    assert _caption(torch.tensor(1), ["cat", "dog"]) == "dog"
    assert _caption(torch.tensor([0.3, 0.7, 0.0]), ["cat", "dog", "eel"]) == "0.70 dog\n0.30 cat"


def test_gray_images_and_many_classes_are_drawn(tmp_path):
    data = FakeDataModule(size=80, in_channels=1, num_classes=80, image_size=8)
    data.setup()
    counts = look(data, folder=str(tmp_path), images=3)
    assert counts == {"train/images": 80, "val/images": 20, "test/images": 20}


def test_zero_images_and_foreign_datamodules_are_refused(tmp_path):
    data = DigitsDataModule()
    data.setup()
    with pytest.raises(ValueError, match=r"`images` \(=0\)"):
        look(data, folder=str(tmp_path), images=0)
    with pytest.raises(
        ValueError, match="task=look supports se_lightning datamodules only, got int"
    ):
        look(3, folder=str(tmp_path))


def test_a_missing_root_says_where(run_main, tmp_path):
    code, message = run_main("task=look", "data=image_folder", "data.root=nowhere")
    assert code == 1
    assert "Traceback" not in message
    assert f"{tmp_path / 'nowhere'} is not a folder" in message
