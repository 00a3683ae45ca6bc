import numpy as np
import pytest

from se_lightning.data.samplers import EvalBatches, TrainBatches


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
def test_evaluation_sees_each_sample_once_in_equally_many_batches_per_rank(world_size, size):
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


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_can_start_at_any_batch(world_size):
    def order():
        return TrainBatches(101, 8, seed=1, world_size=world_size, rank=world_size - 1)

    whole = epoch_of(order(), epoch=3)
    jumped = order()
    jumped.start_at(3, 4)
    assert [keys.tolist() for _, keys in jumped] == whole[4:]
    jumped.set_epoch(4)
    assert [keys.tolist() for _, keys in jumped] == epoch_of(order(), epoch=4)
    with pytest.raises(ValueError, match=rf"`batch` \(={len(whole)}\) must be from 0 to"):
        jumped.start_at(0, len(whole))


@pytest.mark.parametrize("world_size", [1, 3])
def test_repeats_give_each_sample_copies_on_different_ranks(world_size):
    orders = [
        TrainBatches(90, 10, seed=0, world_size=world_size, rank=rank, repeats=3)
        for rank in range(world_size)
    ]
    ranks = [[key for batch in epoch_of(order) for key in batch] for order in orders]
    keys = [key for rank in ranks for key in rank]
    assert len(keys) == len(set(keys)) == 90  # as many as without repeats, no copy twice
    counts = np.bincount([key % 90 for key in keys], minlength=90)
    assert sorted(set(counts)) == [0, 3]
    if world_size == 3:
        for rank in ranks:
            assert len({key % 90 for key in rank}) == 30
    with pytest.raises(ValueError, match=r"`repeats` \(=0\)"):
        TrainBatches(90, 10, seed=0, repeats=0)
