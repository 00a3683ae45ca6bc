import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from se_lightning.data.augment import CropFlip, crop_flip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_equals_torchvisions_pad_crop_and_flip_of_each_image(dtype):
    images = torch.randint(0, 256, (20, 3, 12, 10)).to(dtype)
    offsets, flips = torch.randint(0, 7, (20, 2)), torch.rand(20) < 0.5
    found = crop_flip(images, offsets, flips, padding=3)
    for image, (top, left), flip, result in zip(images, offsets, flips, found, strict=True):
        expected = TF.crop(F.pad(image, (3,) * 4), int(top), int(left), 12, 10)
        expected = TF.horizontal_flip(expected) if flip else expected
        assert torch.equal(result, expected)


def test_a_sample_gets_the_same_in_whatever_batch():
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    augment = CropFlip(30, padding=2, flip=True, seed=1)
    whole = augment(images, 4, torch.arange(30))
    part = torch.tensor([7, 3, 29])
    assert torch.equal(
        CropFlip(30, padding=2, flip=True, seed=1)(images[part], 4, part), whole[part]
    )
    assert not torch.equal(augment(images, 5, torch.arange(30)), whole)


def test_offsets_and_flips_are_uniform_and_of_each_samples_own():
    size = 20_000
    marker = torch.zeros(size, 1, 9, 9, dtype=torch.uint8)
    marker[:, :, 4, 3] = 1  # off the middle: where it lands tells offset and flip
    found = CropFlip(size, padding=2, flip=True, seed=0)(marker, 0, torch.arange(size))
    _, _, rows, columns = found.nonzero(as_tuple=True)
    assert len(rows) == size
    shares = torch.bincount(rows, minlength=9)[2:7] / size
    assert shares.sub(1 / 5).abs().max() < 0.015  # 5 standard deviations
    # Mirrored or not, each of 5 offsets: column 3 + o or 5 + o for o in -2 to 2.
    expected = torch.tensor([0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0])
    assert (torch.bincount(columns, minlength=9) / size - expected).abs().max() < 0.015
    together = torch.corrcoef(torch.stack([rows.float(), columns.float()]))[0, 1]
    assert together.abs() < 0.04


def test_nothing_to_do_is_nothing_done():
    images = torch.rand(3, 1, 4, 4)
    assert CropFlip(3, padding=0, flip=False, seed=0)(images, 0, torch.arange(3)) is images


@pytest.mark.parametrize("padding", [-1, 1.5, True])
def test_a_wrong_padding_is_refused_by_name(padding):
    with pytest.raises(ValueError, match="`crop_padding`"):
        CropFlip(3, padding=padding, flip=False, seed=0)
