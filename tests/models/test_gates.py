import math

import pytest
import torch
from timm.layers import SEModule, make_divisible
from torch import nn
from torchvision.ops import SqueezeExcitation as TorchvisionSE

from se_lightning.models.gates import (
    Excitation,
    SqueezeExcitation,
    hidden_widths,
    warn_of_single_units,
)


def test_a_two_by_two_example_worked_by_hand():
    se = SqueezeExcitation(2, ratio=2)
    with torch.no_grad():
        se.fc1.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
        se.fc1.bias.fill_(0.5)
        se.fc2.weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
        se.fc2.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]]])
    # Means 2.5 and 0.5; hidden unit relu(2.5 - 1 + 0.5) = 2; gates sigma(4) and sigma(-1).
    sigma = [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(1))]
    expected = x * torch.tensor(sigma).view(1, 2, 1, 1)
    torch.testing.assert_close(se(x), expected)


@pytest.mark.parametrize("oracle", ["timm", "torchvision"])
def test_it_equals_the_block_of_timm_and_of_torchvision(oracle):
    ours = SqueezeExcitation(64, ratio=8)
    theirs = SEModule(64, rd_channels=8) if oracle == "timm" else TorchvisionSE(64, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 64, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("channels", [16, 64, 256, 1056, 2048])
@pytest.mark.parametrize("ratio", [1, 2, 4, 16, 32, 2.5])
def test_hidden_widths(channels, ratio):
    assert Excitation(ratio).hidden(channels) == max(1, math.floor(channels / ratio))
    timms = make_divisible(channels / ratio, 8, round_limit=0.0)
    assert Excitation(ratio, divisor=8).hidden(channels) == timms


def test_without_biases_only_the_weights_are_left():
    se = SqueezeExcitation(64, ratio=16, bias=False)
    assert sum(parameter.numel() for parameter in se.parameters()) == 2 * 64 * 4


def test_no_gate_is_no_parameter():
    assert list(Excitation(gate="none").build(64).parameters()) == []


@pytest.mark.parametrize("ratio", [0, -1, 0.5, "abc", None, True, math.nan, math.inf])
def test_a_wrong_ratio_is_refused_by_name(ratio):
    with pytest.raises(ValueError, match=r"`ratio` \(="):
        Excitation(ratio)


@pytest.mark.parametrize(("option", "value"), [("gate", "foo"), ("divisor", 0), ("divisor", 1.5)])
def test_a_wrong_option_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"`{option}` "):
        Excitation(**{option: value})


def test_single_hidden_units_are_told_once_by_name():
    model = nn.Sequential(SqueezeExcitation(16, 32), SqueezeExcitation(64, 32))
    assert hidden_widths(model) == {"0": 1, "1": 2}
    with pytest.warns(
        UserWarning, match=r"ratio=32 leaves one hidden unit in 1 gates \(0\)"
    ) as told:
        warn_of_single_units(model)
    assert len(told) == 1
