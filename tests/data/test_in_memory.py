import pytest
import torch

from se_lightning import DigitsDataModule


def batches(workers, epoch):
    data = DigitsDataModule(batch_size=100, num_workers=workers, seed=3)
    data.setup()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_workers_change_nothing():
    alone, helped = batches(0, 2), batches(2, 2)
    assert len(alone) == 13
    for (x, y), (u, v) in zip(alone, helped, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_epochs_differ_and_cover_all():
    first, second = batches(0, 0), batches(0, 1)
    assert not torch.equal(first[0][0], second[0][0])
    labels = torch.cat([y for _, y in first])
    assert torch.equal(labels.sort().values, torch.cat([y for _, y in second]).sort().values)
    assert len(labels) == 1257


def test_augmentation_is_for_training_only():
    data = DigitsDataModule()
    data.setup()
    once, twice = (torch.cat([x for x, _ in data.test_dataloader()]) for _ in range(2))
    assert torch.equal(once, twice)


def test_a_subclass_must_say_where_its_images_come_from():
    from se_lightning.data.in_memory import InMemoryDataModule

    data = InMemoryDataModule(
        batch_size=2, eval_batch_size=2, crop_padding=0, flip=False, num_workers=0, seed=0
    )
    with pytest.raises(TypeError, match="must define `load`"):
        data.setup()
