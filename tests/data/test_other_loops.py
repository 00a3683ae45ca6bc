"""Loops of other libraries with the loaders and data sets of this package."""

import lightning_fabric
import pytest
import torch
from torch import distributed, nn

KINDS = ["fake", "mnist", "image_folder"]


def batches(loader):
    return [(images, labels) for images, labels in loader]


def same(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def samples(loader):
    """Return the sums of the images, which identify them."""
    return sorted(round(float(image.double().sum()), 3) for images, _ in loader for image in images)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["fake", "image_folder"])
def test_fabric_sees_the_batches_of_a_plain_loop(make, name, workers):
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    loaders = make(name, num_workers=workers)
    train, val = fabric.setup_dataloaders(loaders.train_dataloader(), loaders.val_dataloader())
    expected = make(name)
    for epoch in range(3):
        assert same(batches(train), batches(expected.train_dataloader(epoch)))
    assert same(batches(val), batches(expected.val_dataloader()))


@pytest.mark.parametrize("name", KINDS)
def test_loaders_without_a_trainer_share_the_samples_among_the_processes(make, name, monkeypatch):
    """As of Fabric, of torchrun, or of a Trainer that is given loaders."""
    whole = make(name)
    all_train, all_val = samples(whole.train_dataloader(0)), samples(whole.val_dataloader())
    data = make(name)  # before the processes know each other
    loaders = data.train_dataloader(0), data.val_dataloader()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        train, val = loaders
        train.set_epoch(0)
        assert len(train) == -(-(len(whole.labels("train")) // 2) // 8)
        ranks.append((samples(train), samples(val)))
    (train0, val0), (train1, val1) = ranks
    assert len(train0) == len(train1)
    assert sorted(val0 + val1) == all_val
    assert len(train0) + len(train1) >= len(all_train) - 3


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_trains_on_new_epochs_and_evaluates_every_sample(make, name):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    data, expected = make(name), make(name)
    train, val = accelerator.prepare(data.train_dataloader(), data.val_dataloader())
    assert train.total_batch_size == 8
    for epoch in range(2):
        assert len(train) == len(expected.train_dataloader(epoch))
        assert same(batches(train), batches(expected.train_dataloader(epoch)))
    assert same(batches(val), batches(expected.val_dataloader()))
    found = [accelerator.gather_for_metrics(labels) for _, labels in val]
    assert torch.cat(found).tolist() == expected.labels("val").tolist()


@pytest.mark.parametrize("processes", [2, 3])
def test_accelerates_processes_get_different_samples(make, processes):
    from accelerate.data_loader import BatchSamplerShard

    data = make("fake", mixup=0.0)
    order = data.train_dataloader(0).batch_sampler
    shards = []
    for index in range(processes):
        order.sampler.set_epoch(0)
        shard = BatchSamplerShard(order, processes, index, even_batches=False)
        shards.append([code for batch in shard for code in batch])
    codes = [code for shard in shards for code in shard]
    assert len(codes) == len(set(codes)) == len(order.sampler)


@pytest.mark.parametrize("split", ["predefined", "random"])
def test_skorch_fits_and_predicts_the_data_sets(make, split):
    import skorch
    from skorch.dataset import ValidSplit
    from skorch.helper import predefined_split

    data = make("fake", mixup=0.0)
    val, test = (data.dataset(name, augmented=False) for name in ("val", "test"))
    net = skorch.NeuralNetClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=2,
        classes=list(range(10)),
        train_split=predefined_split(val) if split == "predefined" else ValidSplit(3),
        verbose=0,
    )
    net.fit(data.dataset("train", augmented=True), y=None)
    assert len(net.history) == 2
    assert net.predict(test).shape == (len(test),)


def test_captum_attributes_the_images_of_a_data_set(make):
    from captum.attr import Saliency

    data = make("fake")
    image, label = data.dataset("test", augmented=False)[0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    found = Saliency(net).attribute(image[None].requires_grad_(), target=label, abs=False)
    assert torch.allclose(found.flatten(), net[1].weight[label])
