import numpy as np
import torch
from sklearn.datasets import load_digits

from se_lightning import DigitsDataModule


def test_the_split_is_fixed_stratified_and_whole():
    splits = DigitsDataModule(seed=5).load()
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    for _, labels in splits.values():
        assert np.ptp(np.bincount(labels)) <= 0.08 * len(labels) / 10 + 1
    together = np.concatenate([images for images, _ in splits.values()])
    assert len(np.unique(together.reshape(1797, -1), axis=0)) == len(
        np.unique(load_digits().data, axis=0)
    )
    again = DigitsDataModule(seed=6).load()
    assert all(np.array_equal(splits[split][1], again[split][1]) for split in splits)


def test_images_are_enlarged_and_normalized():
    data = DigitsDataModule(crop_padding=0)
    data.setup()
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (180, 1, 32, 32)
    raw, _ = data.load()["val"]
    # The center of a 4x4 block of the enlarged image has the value of the original pixel.
    small = torch.from_numpy(load_digits().images / 16 * 255)
    middles = raw.reshape(180, 8, 4, 8, 4)[:, :, 1:3, :, 1:3].mean((2, 4))
    found = [(small - torch.from_numpy(m)).abs().amax((1, 2)).min() for m in middles[:20]]
    assert max(found) < 45
    train = torch.from_numpy(data.load()["train"][0]) / 255
    assert abs(train.mean() - data.mean) < 1e-3
    assert abs(train.std() - data.std) < 1e-3
    expected = (raw / 255 - data.mean) / data.std
    np.testing.assert_allclose(images[:, 0].numpy(), expected, atol=1e-5)


def test_the_public_attributes_of_a_datamodule():
    data = DigitsDataModule()
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, 32)
    assert list(data.class_names) == list("0123456789")
