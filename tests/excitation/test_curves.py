import numpy as np
import pytest
import torch

from se_lightning.excitation import ExcitationStatistics, curve_arrays
from se_lightning.excitation.class_choice import evenly
from se_lightning.excitation.curves import find_layers

LAYERS = ["stem.se", "layer1.0.se", "layer1.1.se"]
CHANNELS = [3, 70, 1]
NAMES = {7: "pug", 2: "cliff"}
LABELS = np.array([7, 7, 2, 5, 7, 2, 2, 0])


@pytest.fixture
def gates():
    generator = np.random.default_rng(0)
    return [generator.random((len(LABELS), c)).astype(np.float32) for c in CHANNELS]


def summary_of(gates, classes=NAMES, **options):
    statistics = ExcitationStatistics(LAYERS, CHANNELS, classes=list(classes), **options)
    statistics.update([[torch.from_numpy(each)] for each in gates], labels=torch.tensor(LABELS))
    return statistics.summary()


def test_the_arrays_equal_those_computed_by_hand(gates):
    names = {**NAMES, 9: "empty"}
    arrays = curve_arrays(summary_of(gates, names), names, layers=["layer1.0.se", 0], channels=2)
    assert arrays["layers"].tolist() == ["layer1.0.se"] * 2 + ["stem.se"] * 2
    assert arrays["channels"].tolist() == [0, 69, 0, 2]
    assert arrays["labels"].tolist() == [7, 2, 9]
    assert arrays["names"].tolist() == ["pug", "cliff", "empty"]
    assert arrays["samples"].tolist() == [3, 3, 0]
    values = np.concatenate([gates[1][:, [0, 69]], gates[0][:, [0, 2]]], axis=1).astype(np.float64)
    np.testing.assert_allclose(arrays["mean_of_all"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(arrays["std_of_all"], values.std(0), rtol=1e-9)
    for row, label in enumerate(NAMES):
        np.testing.assert_allclose(arrays["means"][row], values[label == LABELS].mean(0))
        np.testing.assert_allclose(arrays["stds"][row], values[label == LABELS].std(0))
    assert np.isnan(arrays["means"][2]).all()


@pytest.mark.parametrize(
    ("count", "panels", "expected"),
    [(50, 6, [0, 10, 20, 29, 39, 49]), (9, 6, [0, 2, 3, 5, 6, 8]), (3, 6, [0, 1, 2]), (1, 6, [0])],
)
def test_layers_are_evenly_spaced_in_depth(count, panels, expected):
    assert evenly(count, panels) == expected


def test_layers_are_found_by_name_and_by_index():
    assert find_layers(LAYERS, ["layer1.1.se", 0]) == [2, 0]
    assert find_layers(LAYERS, None) == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["layer1.0"], "no layer 'layer1.0' among the 3. Closest names: layer1.0.se"),
        (["x"], "Closest names: stem.se"),
        ([3], "no layer 3 among the 3"),
        ([-1], "no layer -1"),
        ([], "must be a list of at least one"),
        ("stem.se", "must be a list of at least one"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        find_layers(LAYERS, given)
