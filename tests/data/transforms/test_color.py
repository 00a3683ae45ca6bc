import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from se_lightning.data.transforms.color import _CHANGES, ColorJitter

ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def images(n, channels=3):
    return torch.rand(n, channels, 7, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_a_change_equals_torchvisions_of_each_image(kind):
    before = images(30)
    before[0] = 0.5  # gray, without a hue
    factors = torch.linspace(-0.5, 0.5, 30) if kind == 3 else torch.linspace(0, 2, 30)
    found = _CHANGES[kind](before, factors)
    for image, factor, result in zip(before, factors, found, strict=True):
        assert torch.allclose(result, ADJUST[kind](image, float(factor)), atol=1e-5)


def test_factors_are_distributed_as_torchvisions_and_differ_between_images():
    size = 3000
    grey = torch.full((size, 3, 2, 2), 0.4)
    ours = ColorJitter([0.4, 0, 0, 0], seed=0)(grey.clone(), 0, np.arange(size))[:, 0, 0, 0] / 0.4
    torch.manual_seed(0)
    jitter = v2.ColorJitter(brightness=0.4)
    theirs = torch.stack([jitter(image)[0, 0, 0] / 0.4 for image in grey])
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.001
    assert len(torch.unique(ours)) > size * 0.99


def test_the_order_of_the_changes_differs_between_images():
    """Brightness and contrast do not commute: the results of both orders occur."""
    jitter = ColorJitter([0.5, 0.5, 0, 0], seed=0)
    before, keys = images(1).expand(60, 3, 7, 6), np.arange(60)
    found = jitter(before.clone(), 0, keys)
    from se_lightning.data.transforms.sample_rng import uniform

    factors = torch.from_numpy(jitter._factors(uniform(0, 0, keys, "color", 8)[:, :4])).float()
    brightness, contrast = _CHANGES[:2]
    one = contrast(brightness(before, factors[:, 0]), factors[:, 1])
    other = brightness(contrast(before, factors[:, 1]), factors[:, 0])
    first, second = (((found - x).abs().amax((1, 2, 3)) < 1e-6) for x in (one, other))
    assert (first | second).all()
    assert 15 < first.sum() < 45
    assert 15 < second.sum() < 45


def test_gray_images_change_in_brightness_and_contrast_only():
    found = ColorJitter([0.5, 0.5, 0.5, 0.2], seed=0)(images(5, 1), 0, np.arange(5))
    assert torch.allclose(
        found, ColorJitter([0.5, 0.5, 0, 0], seed=0)(images(5, 1), 0, np.arange(5))
    )


@pytest.mark.parametrize("wrong", [-1, [0.1, 0.2], [0.1, 0.1, 0.1, 0.6], [0.1, 0.1, -1, 0]])
def test_wrong_strengths_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match="`color_jitter`"):
        ColorJitter(wrong, seed=0)
