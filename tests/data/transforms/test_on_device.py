import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from se_lightning.data.transforms.on_device import Erasing, Finish, Mixing


def holes(images):
    """Return top, left, height and width of the box of zeros in each image that has one."""
    found = []
    for image in images:
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        if len(rows):
            top, left = int(rows.min()), int(columns.min())
            height, width = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
            assert (image[:, top : top + height, left : left + width] == 0).all()
            assert len(rows) == height * width
            found.append((top, left, height, width))
    return np.array(found)


def test_erased_boxes_are_distributed_as_torchvisions():
    size = 4000
    ones = torch.ones(size, 1, 32, 40)
    erase = Erasing(random_erasing=0.6, cutout=0, seed=0)
    ours = holes(erase(ones.clone(), 0, np.arange(size)))
    torch.manual_seed(0)
    oracle = v2.RandomErasing(p=0.6)
    theirs = holes(torch.stack([oracle(image) for image in ones]))
    assert abs(len(ours) / size - 0.6) < 0.04  # 5 standard deviations
    for measure in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: np.log(box[:, 2] / box[:, 3]),  # aspect ratio
        lambda box: box[:, 0] / (33 - box[:, 2]),  # top and left, as fractions of the free range
        lambda box: box[:, 1] / (41 - box[:, 3]),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001
    assert len(np.unique(ours, axis=0)) > 0.9 * len(ours)


def test_cutout_is_a_square_around_any_pixel():
    size = 4000
    found = Erasing(random_erasing=0, cutout=8, seed=0)(
        torch.ones(size, 3, 16, 16), 0, np.arange(size)
    )
    boxes = holes(found)
    assert len(boxes) == size
    # The center is uniform on 16 rows: the top edge is 0 for rows 0 to 4, else row - 4.
    shares = np.bincount(boxes[:, 0], minlength=12) / size
    expected = np.array([5] + 11 * [1]) / 16
    assert np.abs(shares - expected).max() < 0.04
    inner = boxes[(boxes[:, 0] > 0) & (boxes[:, 0] < 8) & (boxes[:, 1] > 0) & (boxes[:, 1] < 8)]
    assert (inner[:, 2:] == 8).all()


def test_mixed_labels_are_the_shares_of_the_pixels():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 20, 20).clone()
    labels = torch.arange(6)
    for mixing in (Mixing(mixup=1, cutmix=0, seed=0), Mixing(mixup=0, cutmix=1, seed=0)):
        mixed, soft = mixing(images, labels, 6, 0, 0)
        assert soft.shape == (6, 6)
        assert torch.allclose(soft.sum(1), torch.ones(6))
        assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(6.0), atol=1e-4)


def test_the_mixtures_lambda_is_beta_distributed_and_torchs_generator_stays():
    images, labels = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    mixing = Mixing(mixup=0.4, cutmix=0, seed=0)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    shares = [float(mixing(images, labels, 2, 0, k)[1][0, 0]) for k in range(1500)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.001


def test_with_both_each_batch_gets_one_at_random():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone()
    mixing = Mixing(mixup=1.0, cutmix=1.0, seed=0)
    whole = [
        bool(((x := mixing(images, torch.arange(2), 2, 0, k)[0]) == x.round()).all())
        for k in range(200)
    ]
    assert 60 < sum(whole) < 140  # cutmix leaves pixels as they are


def test_without_options_it_equals_torchvisions_normalize():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found, labels = Finish(mean, std)(images, torch.arange(4), 0, np.arange(4))
    usual = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    assert torch.allclose(found, usual(images), atol=1e-5)
    assert torch.equal(labels, torch.arange(4))


def test_an_empty_batch_passes():
    empty = torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)
    finish = Finish(
        0.5,
        0.5,
        erasing=Erasing(random_erasing=1.0, cutout=2, seed=0),
        mixing=Mixing(mixup=1.0, cutmix=0, seed=0),
    )
    assert finish(*empty, 0, np.zeros(0, np.int64))[0].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_a_wrong_alpha_is_refused_by_name(option):
    with pytest.raises(ValueError, match=f"`{option}`"):
        Mixing(**{"mixup": 0, "cutmix": 0, option: -0.1}, seed=0)


@pytest.mark.parametrize(("option", "value"), [("random_erasing", 1.1), ("cutout", 2.5)])
def test_wrong_erasing_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        Erasing(**{"random_erasing": 0.0, "cutout": 0, option: value}, seed=0)
