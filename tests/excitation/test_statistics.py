import numpy as np
import pytest
import torch

from se_lightning.excitation import ExcitationStatistics

CHANNELS = (4, 6)


def batches(count=5, size=7, **options):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        gates = [torch.rand(size, c, 1, 1, generator=generator, **options) for c in CHANNELS]
        yield gates, torch.randint(0, 5, (size,), generator=generator)


def filled(classes=(), **options):
    statistics = ExcitationStatistics(["a", "b"], CHANNELS, classes=classes, **options)
    everything, labels = [], []
    for gates, label in batches():
        statistics.update([[gate] for gate in gates], labels=label)
        everything.append(torch.cat([gate.flatten(1) for gate in gates], 1))
        labels.append(label)
    return statistics, torch.cat(everything), torch.cat(labels).numpy()


@pytest.mark.parametrize("bins", [64, 50, 1])
def test_counts_equal_histc_per_channel(bins):
    statistics, values, _ = filled(bins=bins)
    summary = statistics.summary()
    for channel in range(10):
        by_hand = torch.histc(values[:, channel], bins, 0, 1).long().tolist()
        assert summary.counts[channel].tolist() == [*by_hand, 0, 0]
    assert summary.histogram().sum(1).tolist() == [35 * 4, 35 * 6]
    assert summary.counts.dtype == np.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_counts_in_other_precisions_equal_numpy(dtype):
    values = torch.rand(300, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    statistics = ExcitationStatistics(["a"], [4])
    statistics.update([[values]])
    by_hand = np.histogram(values.float().numpy(), 64, (0, 1))[0]
    assert statistics.summary().histogram()[0, :64].tolist() == by_hand.tolist()


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 2.0)])
def test_counts_over_other_ranges_equal_histc(ends):
    values = torch.cat([torch.empty(500).uniform_(*ends), torch.tensor([*ends, 2.5, -1.5])])
    statistics = ExcitationStatistics(["a"], [1], lower=ends[0], upper=ends[1], bins=16)
    statistics.update([[values.view(-1, 1)]])
    by_hand = torch.histc(values, 16, *ends).long().tolist()
    assert statistics.summary().histogram()[0].tolist() == [*by_hand, 0, 2]


def test_every_value_is_counted():
    values = torch.tensor([0.0, 1.0, 0.5, -0.1, 1.1, float("nan"), float("inf"), -float("inf")])
    statistics = ExcitationStatistics(["a"], [1], bins=4)
    statistics.update([[values.view(-1, 1)]])
    assert statistics.summary().histogram().tolist() == [[1, 0, 1, 1, 1, 4]]


def test_moments_equal_those_by_hand_overall_and_by_class():
    statistics, values, labels = filled(classes=[3, 0])
    summary, values = statistics.summary(), values.double().numpy()
    np.testing.assert_allclose(summary.mean(), values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary.std(), values.std(0), rtol=1e-9)
    for label in (3, 0):
        theirs = values[labels == label]
        assert summary.class_samples(label) == len(theirs) > 2
        np.testing.assert_allclose(summary.mean(label), theirs.mean(0), rtol=1e-12)
        np.testing.assert_allclose(summary.std(label), theirs.std(0), rtol=1e-9)
    layers = [values[:, :4].mean(), values[:, 4:].mean()]
    np.testing.assert_allclose(summary.layer_mean(), layers, rtol=1e-12)
    with pytest.raises(ValueError, match=r"`label` \(=1\)"):
        summary.mean(1)


def eta_squared(values, labels):
    centre = values.mean(0)
    between = sum(
        (labels == k).sum() * (values[labels == k].mean(0) - centre) ** 2 for k in set(labels)
    )
    return between.sum() / ((values - centre) ** 2).sum()


@pytest.mark.parametrize("chosen", [None, (4, 1)])
def test_selectivity_is_the_ratio_of_between_class_to_total_variance(chosen):
    statistics, values, labels = filled(classes=[0, 1, 2, 4])
    values = values.double().numpy()
    here = np.isin(labels, chosen or (0, 1, 2, 4))
    by_hand = [eta_squared(values[here][:, part], labels[here]) for part in (np.s_[:4], np.s_[4:])]
    found = statistics.summary().selectivity(chosen)
    np.testing.assert_allclose(found, by_hand, rtol=1e-10)


def test_selectivity_is_1_for_gates_that_equal_the_class_and_nan_for_constants():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    statistics = ExcitationStatistics(["a", "b"], [2, 2], classes=[0, 1, 2])
    gates = torch.stack([labels / 10, labels / 5], 1)
    statistics.update([[gates], [torch.full((6, 2), 0.3)]], labels=labels)
    first, second = statistics.summary().selectivity()
    assert first == pytest.approx(1)
    assert np.isnan(second)
    assert np.isnan(statistics.summary().selectivity([1])).all()


def test_labels_that_were_not_chosen_share_a_row():
    statistics = ExcitationStatistics(["a"], [1], classes=[2])
    gates = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    statistics.update([[gates]], labels=torch.tensor([2, -1, 7, 1]))
    statistics.update([[gates]])
    summary = statistics.summary()
    assert summary.samples[:, 0].tolist() == [1, 7]
    assert summary.mean(2) == pytest.approx(0.1)
    assert summary.mean() == pytest.approx(0.25)


def test_all_values_of_a_spatial_gate_are_counted_and_averaged():
    values = torch.rand(3, 2, 5, 5)
    statistics = ExcitationStatistics(["map", "spatial"], [2, 1])
    statistics.update([[values], [values[:, :1]]])
    summary = statistics.summary()
    by_hand = [torch.histc(v, 64, 0, 1).long().tolist() for v in (values, values[:, 0])]
    assert summary.histogram()[:, :64].tolist() == by_hand
    means = torch.cat([values, values[:, :1]], 1).double().mean((2, 3))
    np.testing.assert_allclose(summary.mean(), means.mean(0), atol=1e-7)
    np.testing.assert_allclose(summary.std(), means.std(0, correction=0), atol=1e-7)


def test_all_calls_of_a_gate_are_counted_and_averaged_per_sample():
    first, second = torch.rand(4, 3), torch.rand(4, 3)
    statistics = ExcitationStatistics(["a"], [3], classes=[0, 1])
    statistics.update([[first, second]], labels=torch.tensor([0, 0, 1, 1]))
    summary = statistics.summary()
    assert summary.counts.sum() == 24
    assert summary.samples[:, 0].tolist() == [2, 2, 0]
    by_hand = ((first + second) / 2)[2:].double().mean(0)
    np.testing.assert_allclose(summary.mean(1), by_hand, atol=1e-7)


def test_the_frames_of_a_clip_are_one_sample():
    frames = torch.rand(6, 3)  # two clips of three
    statistics = ExcitationStatistics(["a"], [3], classes=[0])
    statistics.update([[frames]], labels=torch.tensor([0, 1]))
    np.testing.assert_allclose(statistics.summary().mean(0), frames[:3].mean(0), atol=1e-7)
    with pytest.raises(ValueError, match=r"a: the number of gate rows \(5\) must be a multiple"):
        statistics.update([[frames[:5]]], labels=torch.tensor([0, 1]))


def test_a_gate_that_was_not_executed_is_unseen_and_does_not_affect_others():
    values = torch.rand(4, 3)
    statistics = ExcitationStatistics(["never", "a"], [2, 3])
    statistics.update([[], [values]])
    summary = statistics.summary()
    assert summary.unseen == ["never"]
    np.testing.assert_allclose(summary.mean()[2:], values.double().mean(0), atol=1e-12)
    assert np.isnan(summary.mean()[:2]).all()
    assert summary.histogram()[0].sum() == 0


def test_a_summary_does_not_change_afterwards():
    statistics = ExcitationStatistics(["a"], [2])
    statistics.update([[torch.full((3, 2), 0.5)]])
    summary = statistics.summary()
    statistics.update([[torch.ones(3, 2)]])
    assert summary.mean().tolist() == [0.5, 0.5]
    assert statistics.summary().mean().tolist() == [0.75, 0.75]


def test_sums_of_hidden_units_equal_those_by_hand():
    hidden = torch.rand(5, 3).sub(0.5).relu()
    hidden[:, 1] = 0
    statistics = ExcitationStatistics(["a"], [4], [3])
    for part in (slice(0, 2), slice(2, 5)):
        statistics.update([[torch.rand(5, 4)[part]]], [[hidden[part].view(-1, 3, 1, 1)]])
    summary, hidden = statistics.summary(), hidden.double().numpy()
    assert summary.active[0].tolist() == (hidden != 0).sum(0).tolist()
    np.testing.assert_allclose(summary.hidden_sums[0], hidden.sum(0), rtol=1e-12)
    np.testing.assert_allclose(summary.hidden_products[0], hidden.T @ hidden, rtol=1e-12)


def test_a_rank_without_samples_changes_nothing():
    statistics = ExcitationStatistics(["a"], [4], [2], classes=[0])
    statistics.update([[torch.zeros(0, 4)]], [[torch.zeros(0, 2)]], torch.zeros(0).long())
    assert not statistics.totals.any()


def test_counts_beyond_float32_are_exact():
    statistics = ExcitationStatistics(["a"], [1], bins=1)
    statistics.totals[0] += 2**40
    statistics.update([[torch.ones(1, 1)]])
    assert statistics.summary().histogram()[0, 0] == 2**40 + 1


def test_the_state_is_one_tensor_that_is_summed_over_ranks_and_not_a_buffer():
    statistics, _, _ = filled(classes=[1])
    assert dict(statistics.named_buffers()) == {}  # DDP overwrites buffers with those of rank 0
    reductions = {state: how.__name__ for state, how in statistics._reductions.items()}
    assert reductions == {"totals": "dim_zero_sum"}
    statistics.reset()
    assert not statistics.totals.any()


def test_100_classes_of_se_resnet50_take_less_than_50_mb():
    channels = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3  # SE-ResNet-50's 15,104
    statistics = ExcitationStatistics(
        [str(k) for k in range(16)], channels, [c // 16 for c in channels], classes=range(100)
    )
    assert sum(channels) == 15_104
    assert statistics.nbytes == statistics.totals.numel() * 8 < 50e6


@pytest.mark.parametrize(
    ("options", "named"), [({"bins": 0}, "`bins`"), ({"classes": [1, 1]}, "`classes`")]
)
def test_invalid_arguments_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        ExcitationStatistics(["a"], [1], **options)


def test_an_update_never_needs_a_value_on_the_host():
    """The meta device has no values, so that anything that would synchronize raises an error."""
    statistics = ExcitationStatistics(["a", "b"], CHANNELS, [2, 3], classes=[1]).to("meta")
    gates = [[torch.rand(7, c, 1, 1, device="meta")] for c in CHANNELS]
    hidden = [[torch.rand(7, h, 1, 1, device="meta")] for h in (2, 3)]
    labels = torch.zeros(7, dtype=torch.int64, device="meta")
    statistics.update(gates, hidden, labels)
    statistics.update([[], gates[1]], hidden, labels)
    statistics.update([[gates[0][0].expand(-1, -1, 4, 4)], gates[1]])
    with pytest.raises(RuntimeError, match="meta tensor"):
        statistics.totals.sum().item()


@pytest.mark.gpu
def test_an_update_never_synchronizes_with_the_gpu():
    statistics = ExcitationStatistics(["a", "b"], CHANNELS, [2, 3], classes=[1]).to("cuda")
    gates = [[torch.rand(7, c, 1, 1, device="cuda")] for c in CHANNELS]
    hidden = [[torch.rand(7, h, 1, 1, device="cuda")] for h in (2, 3)]
    labels = torch.zeros(7, dtype=torch.int64, device="cuda")
    statistics.update(gates, hidden, labels)  # the first update copies the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        statistics.update(gates, hidden, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert statistics.summary().samples.sum() == 2 * 2 * 7
