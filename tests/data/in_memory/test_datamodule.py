import itertools
from typing import get_type_hints

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from se_lightning import (
    CIFARDataModule,
    DigitsDataModule,
    FakeDataModule,
    MNISTDataModule,
    SEResNetModule,
)
from se_lightning.data.in_memory.datamodule import InMemoryOptions


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


def test_a_subclass_must_define_load():
    from se_lightning.data.in_memory.datamodule import InMemoryDataModule

    data = InMemoryDataModule(
        batch_size=2, eval_batch_size=2, crop_padding=0, flip=False, num_workers=0, seed=0
    )
    with pytest.raises(TypeError, match="must define `load`"):
        data.setup()


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (DigitsDataModule, (64, 256, 4, False)),
        (MNISTDataModule, (128, 512, 2, False)),
        (CIFARDataModule, (128, 512, 4, True)),
        (FakeDataModule, (8, 8, 0, False)),
    ],
)
def test_every_option_is_a_hyper_parameter_and_has_the_default_of_its_class(kind, defaults):
    saved = kind().hparams
    assert set(get_type_hints(InMemoryOptions)) <= set(saved)
    names = ("batch_size", "eval_batch_size", "crop_padding", "flip")
    assert tuple(saved[name] for name in names) == defaults
    assert kind(**{**saved, "batch_size": 3}).hparams == {**saved, "batch_size": 3}
    with pytest.raises(TypeError, match="unexpected keyword argument 'crop'"):
        kind(crop=4)


EVERYTHING = {
    "rotation": 10,
    "pixel_jitter": 20,
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "rand_augment": 9,
    "random_erasing": 0.5,
    "cutout": 6,
    "mixup": 0.2,
    "cutmix": 1.0,
    "repeats": 3,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_the_same_reached_or_jumped_to(workers):
    def data(num_workers):
        made = FakeDataModule(
            size=100,
            batch_size=16,
            crop_padding=4,
            flip=True,
            num_workers=num_workers,
            **EVERYTHING,
        )
        made.setup()
        return made

    loader = data(0).train_dataloader()
    list(loader)
    loader.sampler.set_epoch(1)
    reached = list(loader)
    jumped = list(data(workers).train_dataloader(epoch=1, batch=4))
    assert len(jumped) == len(reached) - 4 == 3
    for (x, y), (u, v) in zip(reached[4:], jumped, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert y.shape == (len(x), 10)


def test_two_epochs_and_two_copies_of_a_sample_are_augmented_differently():
    data = FakeDataModule(size=40, batch_size=40, crop_padding=4, flip=True, seed=0)
    data.setup()
    dataset = data.dataset("train", augmented=True)
    seen = [dataset[epoch, np.arange(40) + 40 * copy][0] for epoch in (0, 1) for copy in (0, 1)]
    for one, other in itertools.combinations(seen, 2):
        # A few of the 9 * 9 offsets and flips agree by chance.
        assert (one == other).flatten(1).all(1).sum() < 4


def test_invalid_repeats_are_refused_by_name():
    with pytest.raises(ValueError, match=r"`repeats` \(=0\)"):
        DigitsDataModule(repeats=0)


def test_overfit_batches_sees_the_same_batches_in_every_epoch(tmp_path):
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0].clone())

    trainer = pl.Trainer(
        overfit_batches=2,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=Keep(),
        default_root_dir=tmp_path,
    )
    trainer.fit(SEResNetModule(20, 10, ratio=4, in_channels=1), DigitsDataModule())
    assert [len(images) for images in seen] == [64] * 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.gpu
def test_on_a_gpu_the_batches_are_made_there_and_are_the_same():
    data = FakeDataModule(size=64, batch_size=16, crop_padding=4, flip=True, cutout=6, mixup=0.2)
    data.setup()
    expected = list(data.train_dataloader())
    data.trainer = pl.Trainer(accelerator="gpu", devices=1, logger=False)
    for (x, y), (u, v) in zip(expected, data.train_dataloader(), strict=True):
        assert u.device.type == "cuda"
        assert torch.allclose(x, u.cpu(), atol=1e-6)
        assert torch.allclose(y, v.cpu())
