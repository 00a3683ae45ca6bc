import numpy as np
import pytest
import torch
from torch import nn

from se_lightning.tasks.timing import interleaved, machine, quantile, saved_bytes


class Clock:
    """A clock that calls move forward."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds

        return run

    def __call__(self):
        return self.now


def test_calls_take_turns_in_alternating_order_and_each_round_is_measured():
    clock = Clock()
    calls = {"a": clock.call("a", 0.5), "b": clock.call("b", 0.25)}
    times = interleaved(calls, 3, clock=clock)
    assert times == {"a": [0.5] * 3, "b": [0.25] * 3}
    assert clock.order == list("aaabbb" + "ab" + "ba" + "ab")


def test_a_short_call_is_repeated_for_a_measurement():
    clock = Clock()
    times = interleaved({"a": clock.call("a", 0.003)}, 2, clock=clock, shortest=0.02)
    assert times["a"] == pytest.approx([0.003] * 2)
    assert len(clock.order) == 3 + 2 * 7


def test_saved_activations_are_counted_once_and_parameters_not():
    net = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2))
    x = torch.randn(7, 3)
    # The input, and the sigmoid's output, which the last layer saves again.
    assert saved_bytes(net, lambda: net(x)) == 4 * (7 * 3 + 7 * 5)
    assert saved_bytes(net, lambda: net(x.double().float()).sum()) == 4 * (7 * 3 + 7 * 5)
    with torch.no_grad():
        assert saved_bytes(net, lambda: net(x)) == 0


def test_quantiles_are_those_of_numpy():
    values = torch.rand(37, dtype=torch.float64).tolist()
    for share in (0.25, 0.5, 0.95, 0.99):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_the_machine_is_described():
    found = machine()
    assert found["cores"] >= 1
    assert found["torch"] == torch.__version__
