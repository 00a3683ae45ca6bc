import itertools

import numpy as np
import pytest
from scipy import stats

from se_lightning.data.transforms.sample_rng import sample_seeds, uniform

KEYS = np.arange(20_000)


def test_numbers_are_uniform_and_independent():
    draws = uniform(3, 5, KEYS, "crop", 4)
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    neighbours = [draws[1:, 0], draws[:-1, 0]]  # of the next sample
    others = [uniform(3, 6, KEYS, "crop", 1)[1:, 0], uniform(4, 5, KEYS, "crop", 1)[1:, 0]]
    others += [uniform(3, 5, KEYS, "erasing", 1)[1:, 0]]
    together = np.corrcoef([*neighbours, *others, *draws[1:, 1:].T])
    assert np.abs(together - np.eye(len(together))).max() < 0.04  # 5 standard deviations


@pytest.mark.parametrize("key", [0, 1, 12_345_678_901])
def test_the_numbers_of_a_sample_do_not_depend_on_its_batch(key):
    alone = uniform(1, 2, np.array([key]), "crop", 3)
    among = uniform(1, 2, np.array([7, key, 9]), "crop", 3)
    assert np.array_equal(alone[0], among[1])
    assert np.array_equal(alone, uniform(1, 2, np.array([key]), "crop", 5)[:, :3])


def test_seeds_epochs_samples_and_purposes_share_no_number():
    # (1, 0) and (0, 1) as well, and negative seeds.
    seeds = [
        sample_seeds(seed, epoch, KEYS[:500], purpose)
        for seed, epoch, purpose in itertools.product((-1, 0, 1, 2**40), range(5), ("a", "b"))
    ]
    assert len(np.unique(seeds)) == 4 * 5 * 2 * 500
