import numpy as np
import pytest
import torch

from se_lightning.excitation import GateHistogram, draw_histogram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_equal_numpys_over_several_batches(dtype):
    histogram = GateHistogram(["a", "b"], bins=64)
    batches = [torch.rand(7, 33, 1, 1).to(dtype) for _ in range(5)]
    for batch in batches:
        histogram.update(1, batch)
    counts = histogram.compute()
    values = torch.cat(batches).float().numpy()
    assert counts[1].tolist() == [*np.histogram(values, 64, (0, 1))[0], 0, 0]
    assert counts.dtype == torch.int64
    assert not counts[0].any()


def test_nothing_gets_lost():
    values = torch.tensor([0.0, 1.0, 0.5, -0.1, 1.1, float("nan"), float("inf")])
    histogram = GateHistogram(["a"], bins=4)
    histogram.update(0, values)
    assert histogram.compute().tolist() == [[1, 0, 1, 1, 1, 3]]


def test_more_than_a_float32_can_count():
    histogram = GateHistogram(["a"], bins=1)
    histogram.counts += 2**24
    histogram.update(0, torch.ones(1))
    assert histogram.compute()[0, 0].item() == 2**24 + 1


def test_reset_forgets():
    histogram = GateHistogram(["a"])
    histogram.update(0, torch.rand(5))
    histogram.reset()
    assert not histogram.counts.any()


def test_states_are_summed_over_ranks_and_no_buffers():
    histogram = GateHistogram(["a"])
    assert dict(histogram.named_buffers()) == {}  # DDP overwrites those with rank 0's
    reductions = {state: how.__name__ for state, how in histogram._reductions.items()}
    assert reductions == {"counts": "dim_zero_sum"}


def test_bins_below_one_are_refused():
    with pytest.raises(ValueError, match="`bins`"):
        GateHistogram(["a"], bins=0)


def test_the_picture_shows_each_layers_share():
    counts = np.array([[3, 1], [0, 0]])
    figure = draw_histogram(["first", "second"], counts, "title")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_title() == "title"


def test_a_wider_range_equals_histc_over_it():
    values = torch.cat([2 * torch.rand(500), torch.tensor([2.0, 2.1, -0.1])])
    histogram = GateHistogram(["gate"], bins=16, upper=2.0)
    histogram.update(0, values)
    assert histogram.compute()[0].tolist() == [*torch.histc(values, 16, 0, 2).tolist(), 0, 2]
    assert histogram.edges[[0, -1]].tolist() == [0, 2]
