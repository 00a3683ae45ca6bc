"""Datamodules of every kind, on small data."""

import pytest

from se_lightning import (
    CIFARDataModule,
    DigitsDataModule,
    FakeDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    MNISTDataModule,
)
from se_lightning.data.files.sources import write_shards

KINDS = ("digits", "fake", "mnist", "cifar", "image_folder", "shards", "imagenet")
AUGMENTED = {"pixel_jitter": 20, "color_jitter": 0.4, "random_erasing": 0.5, "mixup": 0.2}


@pytest.fixture
def imagenet_root(tmp_path, write_jpeg):
    for split, count in (("train", 20), ("val", 6)):
        for number in range(count):
            wnid = ("n01443537", "n02110958", "n09246464")[number % 3]
            write_jpeg(tmp_path / "imagenet" / split / wnid / f"{wnid}_{number}.JPEG", number)
    return tmp_path / "imagenet"


@pytest.fixture
def shards_root(tmp_path, image_root):
    data = ImageFolderDataModule(str(image_root), num_workers=0)
    sources = {split: data.source(split) for split in ("train", "val", "test")}
    write_shards(sources, data.class_names, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def make(request):
    """Return a function that builds the datamodule of a name, set up."""

    def build(name, **options):
        options = {"batch_size": 8, "eval_batch_size": 5, "num_workers": 0, **AUGMENTED, **options}
        kind, root, more = {
            "digits": (DigitsDataModule, None, {}),
            "fake": (FakeDataModule, None, {"crop_padding": 2, "flip": True}),
            "mnist": (MNISTDataModule, "idx_root", {"val_size": 20}),
            "cifar": (CIFARDataModule, "cifar_root", {"val_size": 10}),
            "image_folder": (ImageFolderDataModule, "image_root", {"image_size": 32}),
            "shards": (ImageFolderDataModule, "shards_root", {"image_size": 32}),
            "imagenet": (ImageNetDataModule, "imagenet_root", {"image_size": 32}),
        }[name]
        if root:
            more = {**more, "root": str(request.getfixturevalue(root))}
        data = kind(**more, **options)
        data.setup()
        return data

    return build
