import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from se_lightning import MNISTDataModule

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


def test_flat_folder_raw_and_gz(idx_root):
    data = MNISTDataModule("mnist", str(idx_root), val_size=20)
    data.setup()
    sizes = {split: len(labels) for split, (_, labels) in data.load().items()}
    assert sizes == {"train": 100, "val": 20, "test": 101}
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (101, 1, 28, 28)
    assert torch.equal(labels, torch.arange(101) % 10)


def test_torchvisions_layout_reads_what_torchvision_reads(idx_root, tmp_path):
    raw = tmp_path / "tv" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    import gzip

    for file in idx_root.iterdir():
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        (raw / file.name.removesuffix(".gz")).write_bytes(content)
    oracle = torchvision.datasets.FashionMNIST(tmp_path / "tv", train=False)
    images, labels = MNISTDataModule("fashion_mnist", str(tmp_path / "tv"), val_size=9).load()[
        "test"
    ]
    assert np.array_equal(images, oracle.data.numpy())
    assert np.array_equal(labels, oracle.targets.numpy())


def test_validation_is_split_from_train_by_a_separate_seed(idx_root):
    def split(**options):
        return MNISTDataModule("mnist", str(idx_root), val_size=20, **options).load()

    one, other = split(seed=1), split(seed=2)
    assert np.array_equal(one["val"][0], other["val"][0])
    assert not np.array_equal(one["val"][0], split(split_seed=1)["val"][0])
    train = MNISTDataModule("mnist", str(idx_root))._read("train")[0]
    together = np.concatenate([one["train"][0], one["val"][0]])
    assert np.array_equal(np.unique(together, axis=0), np.unique(train, axis=0))


def test_a_missing_file_names_the_folder_and_both_ways_out(idx_root):
    (idx_root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        MNISTDataModule("kmnist", str(idx_root), val_size=20).setup()
    for word in ("t10k-labels-idx1-ubyte", str(idx_root), "data.root", "data.download=true"):
        assert word in str(caught.value)


def test_a_label_outside_the_classes_is_refused(idx_root):
    path = idx_root / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([11]))
    with pytest.raises(ValueError, match="label 11; MNIST has 10 classes"):
        MNISTDataModule("mnist", str(idx_root), val_size=20).setup()


def test_files_that_do_not_match_are_refused(idx_root):
    shutil.copy(idx_root / "t10k-labels-idx1-ubyte", idx_root / "train-labels-idx1-ubyte")
    with pytest.raises(ValueError, match="120 images, 101 labels"):
        MNISTDataModule("mnist", str(idx_root), val_size=20).setup()


def test_images_of_another_size_are_refused(idx_root):
    path = idx_root / "train-images-idx3-ubyte.gz"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 120, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(480))
    with pytest.raises(ValueError, match=r"images of \(2, 2\) pixels"):
        MNISTDataModule("mnist", str(idx_root), val_size=20).setup()


@pytest.mark.parametrize("val_size", [0, 119, 120, 500])
def test_a_wrong_val_size_is_refused(idx_root, val_size):
    with pytest.raises(ValueError, match="`val_size`"):
        MNISTDataModule("mnist", str(idx_root), val_size=val_size).setup()


def test_an_unknown_set_is_refused_with_the_valid_names():
    with pytest.raises(ValueError, match="mnist, fashion_mnist, kmnist"):
        MNISTDataModule("emnist")


def test_download_goes_through_torchvision_and_its_failure_is_one_message(tmp_path, monkeypatch):
    asked = []

    def fetch(root, download):
        asked.append((root, download))
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", fetch)
    data = MNISTDataModule("kmnist", str(tmp_path), download=True)
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
        data.prepare_data()
    assert asked == [(str(tmp_path), True)]
    assert "by hand: train-images-idx3-ubyte" in str(caught.value)


def test_a_truncated_file_of_an_interrupted_download_is_fetched_again(
    idx_root, tmp_path, monkeypatch
):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in idx_root.iterdir():
        (raw / path.name).write_bytes(path.read_bytes())
    (half,) = raw.glob("t10k-images*")
    half.write_bytes(half.read_bytes()[:1000])
    asked = []

    def download(root, download):
        assert not half.exists()
        half.write_bytes((idx_root / half.name).read_bytes())
        asked.append(root)

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    data = MNISTDataModule("mnist", str(tmp_path), download=True, val_size=20)
    data.prepare_data()
    data.prepare_data()  # all files exist now
    data.setup()
    assert asked == [str(tmp_path)]
    assert len(data.labels("test")) == 101


def test_present_files_are_not_downloaded(idx_root, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    MNISTDataModule("mnist", str(idx_root), download=True).prepare_data()


@needs_debian
def test_the_real_fashion_mnist():
    data = MNISTDataModule("fashion_mnist", str(DEBIAN))
    splits = data.load()
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert np.bincount(splits["test"][1]).tolist() == [1000] * 10
    images = data._read("train")[0] / 255
    assert abs(images.mean() - data.mean) < 1e-4
    assert abs(images.std() - data.std) < 1e-4
