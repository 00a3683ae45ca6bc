"""Data sets by index and loaders in plain loops, as users of torchvision expect them."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from se_lightning import DigitsDataModule, FakeDataModule
from se_lightning.data.dataset import Loader, batches_of
from se_lightning.data.samplers import EvalSampler, TrainSampler

KINDS = ["digits", "fake", "mnist", "cifar", "image_folder", "shards", "imagenet"]
PLAIN = {"pixel_jitter": 20, "color_jitter": 0.0, "random_erasing": 0.0, "mixup": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:Only 3 of ImageNet's 1000 classes")


def epochs(loaders):
    """Return all images and labels of each loader's epoch."""
    return [tuple(map(torch.cat, zip(*loader, strict=True))) for loader in loaders]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_loop_sees_a_new_order_and_new_pixels_in_each_epoch(make, name):
    data = make(name, **PLAIN)
    expected = epochs(make(name, **PLAIN).train_dataloader(epoch) for epoch in range(4))
    loader = data.train_dataloader()
    found = epochs([loader, loader]) + epochs(data.train_dataloader() for _ in range(2))
    assert all(map(same, found, expected))
    first, second = found[:2]
    assert not torch.equal(first[1], second[1])
    pixels = [images.double().sum((1, 2, 3)).sort().values for images, _ in (first, second)]
    assert (pixels[0] != pixels[1]).float().mean() > 0.9
    assert len(first[1]) == len(second[1]) >= len(data.labels("train")) - 1


@pytest.mark.parametrize("name", ["mnist", "image_folder"])
def test_epochs_advance_in_workers_that_stay(make, name):
    loader = make(name, num_workers=2).train_dataloader()
    expected = epochs(make(name).train_dataloader(epoch) for epoch in (0, 1, 7, 8))
    found = epochs([loader, loader])
    loader.set_epoch(7)
    found += epochs([loader, loader])
    assert all(map(same, found, expected))


def test_a_loader_has_the_attributes_of_any_dataloader(make):
    data = make("digits", batch_size=64, eval_batch_size=50, pin_memory=False)
    loader, test = data.train_dataloader(), data.test_dataloader()
    assert isinstance(loader, DataLoader)
    assert (loader.batch_size, test.batch_size) == (64, 50)
    assert (loader.drop_last, loader.pin_memory, loader.num_workers) == (False, False, 0)
    assert isinstance(loader.sampler, TrainSampler)
    assert isinstance(test.sampler, EvalSampler)
    assert (len(loader.dataset), len(loader), len(list(loader))) == (1257, 20, 20)
    full = make("digits", batch_size=64, drop_last=True).train_dataloader()
    assert full.drop_last
    assert [len(labels) for _, labels in full] == [64] * 19 == [64] * len(full)


def test_pinning_can_be_asked_for():
    data = DigitsDataModule(pin_memory=True)
    data.setup()
    assert data.train_dataloader().pin_memory
    for name, value in (("pin_memory", "yes"), ("drop_last", 1)):
        with pytest.raises(ValueError, match=rf"`{name}` \(={value!r}\)"):
            DigitsDataModule(**{name: value})


@pytest.mark.parametrize("name", KINDS)
def test_an_integer_gives_an_image_and_its_label(make, name):
    data = make(name)
    images, labels = map(torch.cat, zip(*data.test_dataloader(), strict=True))
    dataset = data.test_dataloader().dataset
    for index in (0, 3, -1, np.int64(2), torch.tensor(1)):
        image, label = dataset[index]
        assert torch.equal(image, images[index])
        assert (type(label), label) == (int, int(labels[index]))
    assert [label for _, label in dataset] == labels.tolist()
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]
    with pytest.raises(TypeError):
        dataset["0"]


@pytest.mark.parametrize("name", KINDS)
def test_other_loaders_and_subsets_take_the_data_set(make, name):
    dataset = make(name).test_dataloader().dataset
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    chosen = [4, 1, 3]
    for loader, expected in (
        (DataLoader(dataset, 4), range(len(dataset))),
        (DataLoader(Subset(dataset, chosen), 2, num_workers=2), chosen),
        (DataLoader(Subset(Subset(dataset, chosen), [2, 0]), 1), [3, 4]),
        (DataLoader(ConcatDataset([dataset, dataset]), 9), [*range(len(dataset))] * 2),
        (DataLoader(dataset, 3, sampler=chosen), chosen),
    ):
        ((found, targets),) = epochs([loader])
        assert torch.equal(found, images[list(expected)])
        assert torch.equal(targets, labels[list(expected)])
    parts = random_split(dataset, [0.5, 0.5])
    assert sum(len(part) for part in parts) == len(dataset)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["digits", "fake", "image_folder"])
def test_items_are_augmented_anew_by_torchs_generator_until_an_epoch_is_set(make, name, workers):
    data = make(name, **PLAIN)
    dataset = data.dataset("train", augmented=True)
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    dataset.set_epoch(5)
    ordered = data.train_dataloader(epoch=5)
    order = ordered.sampler.keys(5)
    loader = DataLoader(dataset, 8, **more)
    (fixed, later) = epochs([loader]), dataset.set_epoch(6) or epochs([loader])
    assert same((fixed[0][0][order], fixed[0][1][order]), epochs([ordered])[0])
    assert not torch.equal(fixed[0][0], later[0][0])

    found = []
    for _ in range(2):
        torch.manual_seed(0)
        loader = DataLoader(data.dataset("train", augmented=True), 8, **more)
        found += epochs([loader, loader])
    assert same(found[0], found[2])
    assert same(found[1], found[3])
    assert not (found[0][0] == found[1][0]).flatten(1).all(1).any()


def test_mixup_mixes_within_the_batches_of_any_loader(make):
    dataset = make("digits", mixup=1.0).dataset("train", augmented=True)
    _, labels = next(iter(DataLoader(dataset, 64)))
    assert labels.shape == (64, 10)
    assert torch.allclose(labels.sum(1), torch.ones(64))
    assert ((labels > 0).sum(1) == 2).any()


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_other_loaders_stop_at_a_bad_file_and_name_it(make, image_root, on_error):
    bad = sorted((image_root / "val").rglob("*.jpg"))[4]
    dataset = make("image_folder", on_error=on_error).val_dataloader().dataset
    bad.write_text("hello")
    assert dataset[3][1] == 1
    for use in (lambda: dataset[4], lambda: list(DataLoader(dataset, 3))):
        with pytest.raises(ValueError, match=rf"{bad.name} cannot be read: .*on_error=skip"):
            use()


class OwnDataset(Dataset):
    """A data set of a user, whose item at (epoch, keys) is a batch."""

    def __len__(self):
        return 20

    def __getitem__(self, item):
        epoch, keys = item
        return torch.full((len(keys), 1), float(epoch)), torch.from_numpy(keys)


def test_a_data_set_that_returns_batches_only_is_enough():
    class Own(FakeDataModule):
        def dataset(self, split, *, augmented):
            return OwnDataset()

    loader = Own(batch_size=8).train_dataloader()
    for epoch in range(2):
        ((images, keys),) = epochs([loader])
        assert images.flatten().tolist() == [float(epoch)] * 20
        assert sorted(keys.tolist()) == list(range(20))
    image, label = loader.dataset[7]
    assert (float(image) > 1000, label) == (True, 7)
    loader.dataset.set_epoch(4)
    assert loader.dataset[7] == (4.0, 7)
    assert batches_of(loader.dataset, augmented=True) is loader.dataset


def test_a_loader_keeps_going_with_a_sampler_of_another_package(make):
    dataset = make("digits").test_dataloader().dataset
    loader = Loader(dataset, sampler=[2, 0, 1], batch_size=2, find_ranks=True)
    loader.set_epoch(3)
    assert len(loader) == 2
    assert [labels.tolist() for _, labels in loader] == [
        [dataset[2][1], dataset[0][1]],
        [dataset[1][1]],
    ]
