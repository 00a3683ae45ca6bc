import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from se_lightning.data.transforms.per_image import CropFlip, SampleTransforms, crop_flip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_equals_torchvisions_pad_crop_and_flip_of_each_image(dtype):
    images = torch.randint(0, 256, (20, 3, 12, 10)).to(dtype)
    offsets, flips = torch.randint(0, 7, (20, 2)), torch.rand(20) < 0.5
    found = crop_flip(images, offsets, flips, padding=3)
    for image, (top, left), flip, result in zip(images, offsets, flips, found, strict=True):
        expected = TF.crop(F.pad(image, (3,) * 4), int(top), int(left), 12, 10)
        expected = TF.horizontal_flip(expected) if flip else expected
        assert torch.equal(result, expected)


TRANSFORMS = {
    "crop": CropFlip(padding=2, flip=True, seed=1),
    "rotation": SampleTransforms(seed=1, rotation=30),
    "rand_augment": SampleTransforms(seed=1, rand_augment=9),
    "trivial_augment": SampleTransforms(seed=1, trivial_augment=True),
    "pixel_jitter": SampleTransforms(seed=1, pixel_jitter=20),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch(name, channels):
    transform = TRANSFORMS[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, channels, 8, 8), dtype=torch.uint8, generator=generator)
    whole = transform(images, 4, np.arange(30))
    assert whole.dtype == torch.uint8
    part = np.array([7, 3, 29])
    assert torch.equal(transform(images[part], 4, part), whole[part])
    assert not torch.equal(transform(images, 5, np.arange(30)), whole)


def test_torchs_generator_is_restored():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TRANSFORMS["rand_augment"](torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 0, np.arange(4))
    assert torch.equal(torch.rand(3), expected)


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    images = torch.arange(200 * 6, dtype=torch.int16).view(200, 1, 2, 3)
    keys = np.arange(1000, 1200)

    def mirrored(epoch, seed=0):
        crop = CropFlip(padding=0, flip="alternating", seed=seed)(images, epoch, keys)
        kept, turned = ((crop == x).all(dim=(1, 2, 3)) for x in (images, images.flip(3)))
        assert (kept ^ turned).all()
        return turned

    first = mirrored(0)
    assert 70 < first.sum() < 130  # 4 standard deviations around half
    for epoch in range(1, 5):
        assert torch.equal(mirrored(epoch), first ^ (epoch % 2 == 1))
    assert not torch.equal(mirrored(0, seed=1), first)


def landing(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, _, rows, columns = images.nonzero(as_tuple=True)
    return rows, columns


def test_crops_and_flips_are_distributed_as_torchvisions():
    size = 20_000
    marker = torch.zeros(1, 9, 9, dtype=torch.uint8)
    marker[:, 4, 3] = 1  # off-center, so that its position shows offset and flip
    pipeline = v2.Compose([v2.RandomCrop(9, padding=2), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    theirs = landing(torch.stack([pipeline(marker) for _ in range(size // 4)]))
    batch = marker.expand(size, 1, 9, 9)
    ours = landing(CropFlip(padding=2, flip=True, seed=0)(batch, 0, np.arange(size)))
    for found, oracle in zip(ours, theirs, strict=True):
        assert len(found) == size
        shares, expected = (torch.bincount(x, minlength=9) / len(x) for x in (found, oracle))
        assert (shares - expected).abs().max() < 0.03  # 5 standard deviations of the difference
    # By hand: mirrored or not, each of 5 offsets: column 3 + o or 5 + o for o in -2 to 2.
    expected = torch.tensor([0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0])
    assert (torch.bincount(ours[1], minlength=9) / size - expected).abs().max() < 0.015
    together = torch.corrcoef(torch.stack([ours[0].float(), ours[1].float()]))[0, 1]
    assert together.abs() < 0.04


def test_pixel_jitter_is_uniform_and_independent_between_pixels():
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    change = SampleTransforms(seed=0, pixel_jitter=20)(grey, 0, np.arange(40)).int() - 128
    counts = torch.bincount(change.flatten() + 20, minlength=41)
    assert len(counts) == 41
    assert (counts / change.numel() - 1 / 41).abs().max() < 0.003
    assert len(torch.unique(change[0])) == 41
    white = SampleTransforms(seed=0, pixel_jitter=20)(grey + 127, 0, np.arange(40))
    assert white.min() >= 235  # clamped at 255, not wrapped around


def test_rotation_is_uniform_to_either_side():
    # The end of a line from the center to the right shows the angle.
    image = torch.zeros(1, 101, 101, dtype=torch.uint8)
    image[:, 50, 50:] = 255
    turned = SampleTransforms(seed=0, rotation=10)(
        image.expand(400, 1, 101, 101), 0, np.arange(400)
    )
    ends = turned[:, 0, :, 95].float()
    rows = (ends * torch.arange(101)).sum(1) / ends.sum(1)
    angles = torch.rad2deg(torch.atan2(rows - 50, torch.tensor(45.0)))
    assert 9 < angles.abs().max() < 10.5
    assert angles.mean().abs() < 1.5  # 5 standard deviations
    assert abs(angles.std() - 20 / 12**0.5) < 0.6


def test_complete_shards_are_left_alone():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    assert CropFlip(padding=0, flip=False, seed=0)(images, 0, np.arange(3)) is images
    assert SampleTransforms(seed=0)(images, 0, np.arange(3)) is images


@pytest.mark.parametrize("padding", [-1, 1.5, True])
def test_a_wrong_padding_is_refused_by_name(padding):
    with pytest.raises(ValueError, match="`crop_padding`"):
        CropFlip(padding=padding, flip=False, seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": -1},
        {"rotation": "10"},
        {"rand_augment": 31},
        {"pixel_jitter": 0.5},
        {"pixel_jitter": 256},
    ],
)
def test_a_wrong_option_is_refused_by_name(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        SampleTransforms(seed=0, **options)


def test_rand_augment_and_trivial_augment_exclude_each_other():
    with pytest.raises(ValueError, match="mutually exclusive"):
        SampleTransforms(seed=0, rand_augment=9, trivial_augment=True)
