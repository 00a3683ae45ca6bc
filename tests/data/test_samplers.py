import copy
import pickle

import numpy as np
import pytest
from torch.utils.data import BatchSampler

from se_lightning.data.samplers import (
    PADDING,
    EpochCounter,
    EvalSampler,
    OneEpoch,
    TrainSampler,
    pack,
    unpack,
)


def batches(order, size=None):
    """Return the keys of each batch, as a DataLoader groups them."""
    size = order.batch_size if size is None else size
    return [unpack(codes)[1].tolist() for codes in BatchSampler(order, size, drop_last=False)]


def epoch_of(order, epoch=0):
    order.set_epoch(epoch)
    return batches(order)


@pytest.mark.parametrize("epoch", [0, 7, 10**6])
def test_an_integer_carries_epoch_and_key(epoch):
    keys = np.array([0, 5, 2**40 - 1])
    codes = pack(epoch, keys)
    assert {type(code) for code in codes} == {int}
    found, again = unpack([*codes, PADDING])
    assert (found, again.tolist()) == (epoch, keys.tolist())
    found, again = unpack([3, 0, -1])  # plain indices
    assert (found, again.tolist()) == (None, [3, 0, -1])
    assert unpack([PADDING])[1].tolist() == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [101, 100, 64])
def test_train_ranks_are_disjoint_and_equally_long(world_size, size):
    orders = [
        TrainSampler(size, 16, seed=0, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    ranks = [epoch_of(order) for order in orders]
    assert len({len(found) for found in ranks}) == 1
    assert {len(order) for order in orders} == {sum(map(len, ranks[0]))}
    seen = [index for found in ranks for batch in found for index in batch]
    assert len(set(seen)) == len(seen)
    assert len(seen) >= size - 2 * world_size
    for step in zip(*ranks, strict=True):
        assert len({len(batch) for batch in step}) == 1


@pytest.mark.parametrize("size", range(4, 40))
def test_no_batch_of_one(size):
    assert min(map(len, epoch_of(TrainSampler(size, 4, seed=0)))) > 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [101, 100, 64])
def test_drop_last_leaves_full_batches_only(world_size, size):
    order = TrainSampler(size, 8, seed=0, world_size=world_size, drop_last=True)
    assert [len(batch) for batch in epoch_of(order)] == [8] * (size // world_size // 8)
    assert len(order) == 8 * (size // world_size // 8)


def test_the_order_is_a_function_of_seed_and_epoch():
    first = epoch_of(TrainSampler(50, 8, seed=3), epoch=2)
    assert first == epoch_of(TrainSampler(50, 8, seed=3), epoch=2)
    assert first != epoch_of(TrainSampler(50, 8, seed=3), epoch=1)
    assert first != epoch_of(TrainSampler(50, 8, seed=4), epoch=2)


def test_each_iteration_is_the_next_epoch_unless_one_is_set():
    expected = [epoch_of(TrainSampler(50, 8, seed=3), epoch) for epoch in range(8)]
    order = TrainSampler(50, 8, seed=3)
    assert [batches(order) for _ in range(3)] == expected[:3]
    order.set_epoch(6)
    assert [batches(order), batches(order)] == expected[6:]
    order.set_epoch(1)
    assert [batches(order), batches(order)] == expected[1:3]


def test_samplers_with_one_counter_share_their_epochs():
    counter = EpochCounter()
    one, other = (TrainSampler(50, 8, seed=3, counter=counter) for _ in range(2))
    found = [unpack(list(order))[0] for order in (one, other, other, one)]
    assert found == [0, 1, 2, 3]
    next(iter(one))  # a look at one batch begins an epoch
    assert unpack(list(other))[0] == 5
    copied = pickle.loads(pickle.dumps(copy.deepcopy(one)))
    assert unpack(list(copied))[0] == 6
    assert unpack(list(one))[0] == 6


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [101, 100, 5, 1])
def test_evaluation_sees_each_sample_once_in_equally_many_batches_per_rank(world_size, size):
    orders = [EvalSampler(size, world_size=world_size, rank=rank) for rank in range(world_size)]
    ranks = [batches(order, 10) for order in orders]
    assert sorted(i for found in ranks for batch in found for i in batch) == list(range(size))
    assert len({len(found) for found in ranks}) == 1
    assert len({len(order) for order in orders} | {len(list(order)) for order in orders}) == 1
    assert max(len(batch) for found in ranks for batch in found) <= 10


def test_batches_that_batch_norm_cannot_use_are_refused():
    with pytest.raises(ValueError, match=r"`batch_size` \(=1\) must be at least 2"):
        TrainSampler(50, 1, seed=0)
    with pytest.raises(ValueError, match="3 training samples are too few for 2 processes"):
        TrainSampler(3, 2, seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"9 training samples .* batch_size=16 and drop_last"):
        TrainSampler(9, 16, seed=0, drop_last=True)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_can_start_at_any_batch(world_size):
    def order():
        return TrainSampler(101, 8, seed=1, world_size=world_size, rank=world_size - 1)

    whole = epoch_of(order(), epoch=3)
    jumped = order()
    jumped.start_at(3, 4)
    assert batches(jumped) == whole[4:]
    assert batches(jumped) == epoch_of(order(), epoch=4)
    with pytest.raises(ValueError, match=rf"`batch` \(={len(whole)}\) must be from 0 to"):
        jumped.start_at(0, len(whole))


def test_one_epoch_repeats_the_first_one_from_the_batch_where_a_run_resumes():
    whole = epoch_of(TrainSampler(50, 8, seed=1))
    again = OneEpoch(TrainSampler(50, 8, seed=1))
    for epoch in range(3):
        again.set_epoch(epoch)
        assert batches(again, 8) == whole
    jumped = TrainSampler(50, 8, seed=1)
    jumped.start_at(4, 2)
    resumed = OneEpoch(jumped)
    assert batches(resumed, 8) == whole[2:]
    resumed.set_epoch(5)
    assert batches(resumed, 8) == whole
    assert list(OneEpoch(EvalSampler(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 3])
def test_repeats_give_each_sample_copies_on_different_ranks(world_size):
    orders = [
        TrainSampler(90, 10, seed=0, world_size=world_size, rank=rank, repeats=3)
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
        TrainSampler(90, 10, seed=0, repeats=0)
