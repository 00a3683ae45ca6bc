import numpy as np
import pytest
import torch

from se_lightning.data import cifar
from se_lightning.data.cifar import CIFARDataModule


def write(path, *columns, seed):
    """Write rows of the binary format: the labels, then 3072 random bytes each."""
    path.parent.mkdir(exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (len(columns[0]), 3072))
    path.write_bytes(np.column_stack([*columns, images]).astype(np.uint8).tobytes())


@pytest.fixture
def root(tmp_path):
    """Make both sets: 60 images for training, 20 for the test."""
    for i in range(5):
        path = tmp_path / "cifar-10-batches-bin" / f"data_batch_{i + 1}.bin"
        write(path, np.arange(12) % 10, seed=i)
    write(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", np.arange(20) % 10, seed=9)
    for file, size in (("train", 60), ("test", 20)):
        path = tmp_path / "cifar-100-binary" / f"{file}.bin"
        write(path, np.arange(size) % 20, np.arange(size) % 100, seed=size)
    return str(tmp_path)


def test_the_splits_and_the_loaders(root):
    data = CIFARDataModule(root=root, val_size=10, batch_size=25)
    data.prepare_data()
    data.setup()
    assert {split: images.shape for split, (images, _) in data.load().items()} == {
        "train": (50, 3, 32, 32),
        "val": (10, 3, 32, 32),
        "test": (20, 3, 32, 32),
    }
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (25, 3, 32, 32)
    assert images.dtype == torch.float32
    images, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == data.labels("test").tolist() == [*range(10), *range(10)]
    raw = data.load()["test"][0] / 255
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (data.mean, data.std))
    assert np.allclose(images.numpy(), (raw - mean) / std, atol=1e-5)


@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100_has_classes_and_superclasses(root, labels, classes):
    data = CIFARDataModule("cifar100", root, labels=labels, val_size=10)
    assert data.num_classes == classes
    assert data.load()["test"][1].tolist() == list(range(20))
    train, val = (data.load()[split][1] for split in ("train", "val"))
    assert sorted([*train, *val]) == sorted(i % classes for i in range(60))


def test_the_names_are_those_on_the_authors_page():
    fine, coarse = cifar._NAMES["cifar100"]["fine"], cifar._NAMES["cifar100"]["coarse"]
    assert len(set(fine)) == 100
    assert list(fine) == sorted(fine)
    assert len(set(coarse)) == 20
    assert list(coarse) == sorted(coarse)
    ten = CIFARDataModule().class_names
    assert (ten[0], ten[1], ten[6], ten[9]) == ("airplane", "automobile", "frog", "truck")


def test_validation_is_split_from_train_by_a_separate_seed(root):
    def split(**options):
        return CIFARDataModule(root=root, val_size=10, **options).load()

    one, other = split(seed=1), split(seed=2)
    assert np.array_equal(one["val"][0], other["val"][0])
    assert not np.array_equal(one["val"][0], split(split_seed=1)["val"][0])
    images = np.concatenate([one["train"][0], one["val"][0]])
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60


@pytest.mark.parametrize("val_size", [0, 59, 60])
def test_a_wrong_val_size_is_refused(root, val_size):
    with pytest.raises(ValueError, match="`val_size`"):
        CIFARDataModule(root=root, val_size=val_size).load()


def test_an_unknown_set_and_unknown_labels_are_refused_with_the_valid_names():
    with pytest.raises(ValueError, match=r"`name` \(='cifar'\) must be one of cifar10, cifar100"):
        CIFARDataModule("cifar")
    with pytest.raises(ValueError, match=r"`labels` \(='coarse'\) must be one of fine for cifar10"):
        CIFARDataModule("cifar10", labels="coarse")
    with pytest.raises(ValueError, match=r"`labels` \(='both'\) must be one of fine, coarse for"):
        CIFARDataModule("cifar100", labels="both")


def test_missing_files_are_downloaded_only_if_requested(root, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cifar, "download_cifar", lambda *args: asked.append(args))
    CIFARDataModule(root=root, download=True).prepare_data()
    CIFARDataModule(root=str(tmp_path / "empty")).prepare_data()
    assert asked == []
    CIFARDataModule("cifar100", str(tmp_path / "empty"), download=True).prepare_data()
    assert asked == [(tmp_path / "empty", "cifar100")]
