import numpy as np
import pytest

from se_lightning.data.order import EvalBatches, TrainBatches, sample_generator


def epoch_of(order, epoch=0):
    order.set_epoch(epoch)
    return [indices.tolist() for _, indices in order]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [101, 100, 64])
def test_train_ranks_are_disjoint_and_equally_long(world_size, size):
    ranks = [
        epoch_of(TrainBatches(size, 16, seed=0, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(TrainBatches(size, 16, seed=0, world_size=world_size)) == len(ranks[0])
    seen = [index for batches in ranks for batch in batches for index in batch]
    assert len(set(seen)) == len(seen)
    assert len(seen) >= size - 2 * world_size
    for step in zip(*ranks, strict=True):
        assert len({len(batch) for batch in step}) == 1


@pytest.mark.parametrize("size", range(4, 40))
def test_no_batch_of_one(size):
    assert min(map(len, epoch_of(TrainBatches(size, 4, seed=0)))) > 1


def test_the_order_is_a_function_of_seed_and_epoch():
    first = epoch_of(TrainBatches(50, 8, seed=3), epoch=2)
    assert first == epoch_of(TrainBatches(50, 8, seed=3), epoch=2)
    assert first != epoch_of(TrainBatches(50, 8, seed=3), epoch=1)
    assert first != epoch_of(TrainBatches(50, 8, seed=4), epoch=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [101, 100, 5, 1])
def test_evaluation_sees_each_sample_once_in_as_many_batches_on_each_rank(world_size, size):
    orders = [EvalBatches(size, 10, world_size=world_size, rank=rank) for rank in range(world_size)]
    ranks = [epoch_of(order) for order in orders]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(size))
    assert len({len(batches) for batches in ranks} | {len(order) for order in orders}) == 1
    assert max(len(batch) for batches in ranks for batch in batches) <= 10


def test_batches_that_batch_norm_cannot_use_are_refused():
    with pytest.raises(ValueError, match=r"`batch_size` \(=1\) must be at least 2"):
        TrainBatches(50, 1, seed=0)
    with pytest.raises(ValueError, match="3 training samples are too few for 2 processes"):
        TrainBatches(3, 2, seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"`batch_size` \(=0\)"):
        EvalBatches(50, 0)


def test_augmentation_has_a_generator_for_each_seed_and_epoch():
    states = {
        sample_generator(seed, epoch).initial_seed() for seed in range(20) for epoch in range(20)
    }
    assert len(states) == 400
    assert np.iinfo(np.int64).max >= max(states)
