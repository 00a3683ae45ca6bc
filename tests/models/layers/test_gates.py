import math

import pytest
import torch
from timm.layers import SEModule, make_divisible
from torch import nn
from torchvision.ops import SqueezeExcitation as TorchvisionSE

from se_lightning.models import create_model
from se_lightning.models.layers.find import hidden_widths, warn_of_single_units
from se_lightning.models.layers.gates import (
    ConcurrentExcitation,
    SpatialExcitation,
    SqueezeExcitation,
    hidden_width,
)
from se_lightning.models.layers.options import Excitation

# Two channels of 2x2 pixels: means 2.5 and 0.5, maxima 4 and 1.
X = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def example_gate(**options) -> SqueezeExcitation:
    """Return a gate with the hidden unit relu(z1 - 2 z2 + 0.5) = h and pre-gates 2h, 1 - h."""
    se = SqueezeExcitation(2, ratio=2, **options)
    with torch.no_grad():
        se.fc1.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
        se.fc1.bias.fill_(0.5)
        se.fc2.weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
        se.fc2.bias.copy_(torch.tensor([0.0, 1.0]))
    return se


@pytest.mark.parametrize(
    ("squeeze", "h"),
    [
        ("avg", 2.5 - 2 * 0.5 + 0.5),  # 2
        ("max", 4 - 2 * 1 + 0.5),  # 2.5
        ("avgmax", 3.25 - 2 * 0.75 + 0.5),  # 2.25
    ],
)
def test_each_squeeze_matches_a_hand_calculation(squeeze, h):
    expected = X * torch.tensor([sigmoid(2 * h), sigmoid(1 - h)]).view(1, 2, 1, 1)
    torch.testing.assert_close(example_gate(squeeze=squeeze)(X), expected)


def test_no_squeeze_matches_a_hand_calculation():
    # Pixel by pixel, relu(x1 - 2 x2 + 0.5): 0 (of -0.5), 2.5, 3.5, 2.5.
    h = [[0.0, 2.5], [3.5, 2.5]]
    first = [[sigmoid(2 * value) for value in row] for row in h]
    second = [[sigmoid(1 - value) for value in row] for row in h]
    expected = X * torch.tensor([first, second])
    torch.testing.assert_close(example_gate(squeeze="none")(X), expected)


@pytest.mark.parametrize(
    ("activation", "gates"),
    [
        ("sigmoid", (sigmoid(4), sigmoid(-1))),
        ("tanh", (math.tanh(4), math.tanh(-1))),
        ("relu", (4.0, 0.0)),
        ("hard-sigmoid", (1.0, (-1 + 3) / 6)),  # relu6(x + 3) / 6
        ("double-sigmoid", (2 * sigmoid(4), 2 * sigmoid(-1))),
    ],
)
def test_each_activation_matches_a_hand_calculation(activation, gates):
    expected = X * torch.tensor(gates).view(1, 2, 1, 1)
    torch.testing.assert_close(example_gate(gate_activation=activation)(X), expected)


def spatial(gate: nn.Module) -> None:
    """Set the spatial pre-gate to x1 - x2 - 1: -1, 1, 2, 2."""
    with torch.no_grad():
        gate.conv.weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
        gate.conv.bias.fill_(-1.0)


SPATIAL = torch.tensor([[sigmoid(-1), sigmoid(1)], [sigmoid(2), sigmoid(2)]])


def test_the_spatial_gate_matches_a_hand_calculation():
    gate = SpatialExcitation(2)
    spatial(gate)
    torch.testing.assert_close(gate(X), X * SPATIAL)


@pytest.mark.parametrize("merge", ["sum", "max", "product"])
def test_each_merge_matches_a_hand_calculation(merge):
    gate = ConcurrentExcitation(2, ratio=2, merge=merge)
    gate.channel.load_state_dict(example_gate().state_dict())
    spatial(gate.spatial)
    by_channel = X * torch.tensor([sigmoid(4), sigmoid(-1)]).view(1, 2, 1, 1)
    by_pixel = X * SPATIAL
    expected = {
        "sum": by_channel + by_pixel,
        "max": torch.where(by_channel > by_pixel, by_channel, by_pixel),
        "product": by_channel * by_pixel,
    }
    torch.testing.assert_close(gate(X), expected[merge])


@pytest.mark.parametrize("oracle", ["timm", "torchvision"])
def test_the_gate_equals_those_of_timm_and_torchvision(oracle):
    gate = SqueezeExcitation(64, ratio=8)
    reference = SEModule(64, rd_channels=8) if oracle == "timm" else TorchvisionSE(64, 8)
    reference.load_state_dict(gate.state_dict())
    x = torch.randn(3, 64, 5, 7)
    torch.testing.assert_close(gate(x), reference(x))


def test_avgmax_equals_timms():
    gate = SqueezeExcitation(64, ratio=8, squeeze="avgmax")
    reference = SEModule(64, rd_channels=8, add_maxpool=True)
    reference.load_state_dict(gate.state_dict())
    x = torch.randn(3, 64, 5, 7)
    torch.testing.assert_close(gate(x), reference(x))


@pytest.mark.parametrize("channels", [16, 64, 256, 1056, 2048])
@pytest.mark.parametrize("ratio", [1, 2, 4, 16, 32, 2.5])
def test_hidden_widths_follow_the_ratio_and_timms_rounding(channels, ratio):
    assert hidden_width(channels, ratio) == max(1, math.floor(channels / ratio))
    timms = make_divisible(channels / ratio, 8, round_limit=0.0)
    assert hidden_width(channels, ratio, divisor=8) == timms


@pytest.mark.parametrize(
    ("gate", "count"),
    [
        ("channel", 2 * 64 * 4),
        ("spatial", 64),  # the Keras seed: + C
        ("concurrent", 2 * 64 * 4 + 64),
        ("none", 0),
    ],
)
def test_gates_without_biases_have_the_expected_parameters(gate, count):
    built = Excitation(ratio=16, gate=gate, se_bias=False).build(64)
    assert sum(parameter.numel() for parameter in built.parameters()) == count


def test_the_options_reach_the_gate():
    gate = Excitation(4, "concurrent", "max", "tanh", "product", False, 8).build(64)
    assert isinstance(gate, ConcurrentExcitation)
    assert (gate.merge, gate.channel.squeeze) == ("product", "max")
    assert gate.channel.fc1.out_channels == 16
    assert isinstance(gate.channel.gate, nn.Tanh)
    assert isinstance(gate.spatial.gate, nn.Tanh)
    assert gate.channel.fc1.bias is gate.spatial.conv.bias is None


@pytest.mark.parametrize("ratio", [0, -1, 0.5, "abc", None, True, math.nan, math.inf])
def test_a_wrong_ratio_is_refused_by_name(ratio):
    with pytest.raises(ValueError, match=r"`ratio` \(="):
        Excitation(ratio)
    with pytest.raises(ValueError, match=r"`ratio` \(="):
        SqueezeExcitation(64, ratio)


@pytest.mark.parametrize(
    ("option", "value"),
    [("gate", "foo"), ("divisor", 0), ("divisor", 1.5), ("squeeze", "min"), ("merge", "mean")],
)
def test_a_wrong_option_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"`{option}` "):
        Excitation(**{option: value})


def test_a_fresh_spatial_gate_is_not_saturated():
    """With He's fan-out initialization, pre-gates would spread over +-30 at 512 channels."""
    from se_lightning.models import SEResNet

    torch.manual_seed(0)
    model = SEResNet([1], [512], gate="spatial", stem="cifar")
    gate = model.layer1[0].se
    values = []
    gate.gate.register_forward_hook(lambda module, inputs, output: values.append(output))
    model(torch.randn(2, 3, 8, 8))
    assert 0.05 < values[0].quantile(0.1) < values[0].quantile(0.9) < 0.95


def test_single_hidden_units_cause_one_warning_with_their_names():
    model = nn.Sequential(SqueezeExcitation(16, 32), SqueezeExcitation(64, 32))
    assert hidden_widths(model) == {"0": 1, "1": 2}
    with pytest.warns(
        UserWarning, match=r"ratio=32 leaves one hidden unit in 1 gates \(0\)"
    ) as warned:
        warn_of_single_units(model)
    assert len(warned) == 1


@pytest.mark.parametrize(
    "options",
    [{"gate": "channel"}, {"gate": "spatial"}, {"gate": "concurrent", "merge": "max"}],
    ids=lambda options: options["gate"],
)
def test_a_double_sigmoid_starts_as_an_identity_that_learns(options):
    """_finish initializes every convolution of a network but keeps those of gates at zero."""
    options = {**options, "ratio": 4, "gate_activation": "double-sigmoid"}
    gated, plain = create_model("se_resnet20", **options), create_model("se_resnet20", gate="none")
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(gated.eval()(x), plain.eval()(x))
    last = [p for n, p in gated.named_parameters() if n.endswith(("fc2.weight", "se.conv.weight"))]
    gated(x).logsumexp(1).sum().backward()
    assert last
    assert all(parameter.grad.abs().sum() > 0 for parameter in last)
