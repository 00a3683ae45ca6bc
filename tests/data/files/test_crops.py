import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop as Oracle

from se_lightning.data.files.crops import CenterCrop, RandomResizedCrop, resized_crop
from se_lightning.data.transforms.sample_rng import uniform

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


@pytest.mark.parametrize("size", [(375, 500), (100, 300)], ids=str)
def test_windows_are_distributed_as_torchvisions(size):
    draws = uniform(0, 0, np.arange(4000), "crop", 22).tolist()
    ours = np.array([resized_crop(each, *size, AREA, ASPECT) for each in draws])
    torch.manual_seed(0)
    image = torch.empty(3, *size, device="meta")
    theirs = np.array([Oracle.get_params(image, AREA, ASPECT) for _ in range(4000)])
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / (size[0] + 1 - box[:, 2]),
        lambda box: box[:, 1] / (size[1] + 1 - box[:, 3]),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1), (7, 1)], ids=str)
def test_the_center_is_cropped_if_nothing_fits_as_in_torchvision(size):
    torch.manual_seed(0)
    expected = Oracle.get_params(torch.empty(3, *size, device="meta"), [1.0, 1.0], ASPECT)
    assert resized_crop([0.5] * 22, *size, (1.0, 1.0), ASPECT) == tuple(expected)


def view(**options):
    given = {"sizes": None, "area": AREA, "aspect": ASPECT, "flip": True, "seed": 0}
    given |= {"upright": False, "interpolation": "bilinear"}
    return RandomResizedCrop(224, **given | options)


def test_sizes_follow_the_epochs():
    sides = view(sizes=[[0, 128], [6, 176], [9, 224]])
    assert [sides.side(epoch) for epoch in (0, 5, 6, 8, 9, 50)] == [128, 128, 176, 176, 224, 224]
    assert view(sizes=[[3, 288]]).side(2) == 224


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crop_area", {"area": (0.5, 1.1)}),
        ("crop_area", {"area": (0.5,)}),
        ("crop_area", {"area": (0.0, 1.0)}),
        ("crop_aspect", {"aspect": (2, 1)}),
        ("train_sizes", {"sizes": [[6, 128], [0, 176]]}),
        ("train_sizes", {"sizes": [[6, 12.5]]}),
        ("train_sizes", {"sizes": [[6]]}),
        ("flip", {"flip": "alternate"}),
    ],
)
def test_a_wrong_option_is_refused_by_name(name, options):
    with pytest.raises(ValueError, match=f"`{name}`"):
        view(**options)


def test_flips_alternate_or_have_the_drawn_probability():
    keys = np.arange(4000)
    first, second, third = (
        np.array(view(flip="alternating").draws(epoch, keys))[:, 0] for epoch in range(3)
    )
    assert set(first) == {0, 1}
    assert np.array_equal(first, 1 - second)
    assert np.array_equal(first, third)
    for flip, share in {True: 0.5, False: 0}.items():
        assert abs(np.array(view(flip=flip).draws(0, keys))[:, 0].mean() - share) < 0.04


def test_a_resize_below_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"`eval_resize` \(=200\)"):
        CenterCrop(200, 224, upright=False, interpolation="bilinear")
