import numpy as np
import pytest
import torch
from scipy.spatial import distance

from se_lightning.excitation import ExcitationStatistics, Taps
from se_lightning.excitation.drift import (
    ImageCosine,
    check_comparable,
    cosine,
    drift_of,
    jensen_shannon,
)
from se_lightning.models import se_resnet20, se_resnet32


def draws(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_equals_scipys():
    generator = np.random.default_rng(0)
    a, b = generator.poisson(2, (2, 7, 66))
    expected = distance.jensenshannon(a, b, base=2, axis=1) ** 2
    np.testing.assert_allclose(jensen_shannon(a, b), expected, rtol=1e-12)
    assert jensen_shannon(a, 5 * a).max() < 1e-15
    assert np.isnan(jensen_shannon(a, np.zeros_like(a))).all()


def test_the_cosine_equals_scipys_and_handles_zero_and_nan():
    a, b = draws(5, 9), draws(5, 9, seed=1)
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    expected = [1 - distance.cosine(x, y) for x, y in pairs]
    np.testing.assert_allclose(cosine(a, b).numpy(), expected, rtol=1e-12)
    zero = torch.zeros(9)
    assert cosine(zero, zero) == 1
    assert cosine(zero, a[0]) == 0
    assert cosine(torch.full((9,), torch.nan), a[0]).isnan()


def test_drift_equals_that_of_arrays_by_hand():
    """Two layers of 3 and 5 channels; two batches; the second layer is called twice."""
    images, channels = 11, (3, 5)
    first = [[draws(images, 3, 1, 1)], [draws(images, 5, 2, 2, seed=1), draws(images, 5, seed=2)]]
    second = [[draws(images, 3, 1, 1, seed=3)], [draws(images, 5, seed=k) ** 2 for k in (4, 5)]]
    nets = [ExcitationStatistics(["a", "b"], channels, bins=8) for _ in range(2)]
    per_image = ImageCosine(channels)
    for rows in (slice(0, 7), slice(7, None)):
        batches = [[[call[rows] for call in layer] for layer in net] for net in (first, second)]
        for statistics, batch in zip(nets, batches, strict=True):
            statistics.update(batch)
        per_image.update(*batches, len(batches[0][0][0]))
    drifts = drift_of(nets[0].summary(), nets[1].summary(), per_image.compute())
    for layer, drift in enumerate(drifts):
        shape = (images, channels[layer], -1)
        a, b = (
            np.mean([call.double().numpy().reshape(shape).mean(2) for call in net], 0)
            for net in (first[layer], second[layer])
        )
        counts = [
            np.histogram(torch.cat([call.flatten() for call in net]).numpy(), 8, (0, 1))[0]
            for net in (first[layer], second[layer])
        ]
        assert drift.cosine == pytest.approx(1 - distance.cosine(a.mean(0), b.mean(0)))
        each = [1 - distance.cosine(x, y) for x, y in zip(a, b, strict=True)]
        assert drift.image_cosine == pytest.approx(np.mean(each))
        assert drift.js == pytest.approx(distance.jensenshannon(*counts, base=2) ** 2)


def test_a_gate_that_was_never_executed_has_nan():
    statistics = ExcitationStatistics(["a", "b"], [3, 5])
    per_image = ImageCosine([3, 5])
    gates = [[draws(4, 3)], []]
    statistics.update(gates)
    per_image.update(gates, gates, 4)
    seen, unseen = drift_of(statistics.summary(), statistics.summary(), per_image.compute())
    assert seen == ("a", 3, pytest.approx(1), pytest.approx(1), 0)
    assert np.isnan(unseen[2:]).all()


def test_networks_with_different_gates_are_refused():
    net = Taps(se_resnet20(ratio=4))
    check_comparable(net, Taps(se_resnet20(ratio=8)), ["a", "b"])
    with pytest.raises(ValueError, match=r"layer2.0.se \(32 channels\) in a, layer2.0.se \(16 ch"):
        check_comparable(net, Taps(se_resnet20(ratio=4, placement="pre")), ["a", "b"])
    with pytest.raises(ValueError, match=r"layer2.0.se \(32 .*\) in a, layer1.3.se \(16 .*\) in b"):
        check_comparable(net, Taps(se_resnet32(ratio=4)), ["a", "b"])
    with pytest.raises(ValueError, match="in a, no further gate in b"):
        check_comparable(net, Taps(se_resnet20(ratio=4, stages=[1, 2])), ["a", "b"])
