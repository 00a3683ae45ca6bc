"""The small networks, compared with transcriptions of their sources."""

import pytest
import torch
from torch import nn

from se_lightning import SENestedModule
from se_lightning.models import Excitation, NestedUnit, SENested, load_weights, se_nested


class SeedGate(nn.Module):
    """The seed's gate: two linear layers with biases, r = 16."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.linear1 = nn.Linear(channels, channels // ratio)
        self.linear2 = nn.Linear(channels // ratio, channels)

    def forward(self, x):
        z = self.squeeze(x).view(x.shape[0], x.shape[1])
        gate = torch.sigmoid(self.linear2(torch.relu(self.linear1(z))))
        return gate.view(x.shape[0], x.shape[1], 1, 1)


class SeedBlock(nn.Module):
    """The seed's block, written from its formula."""

    def __init__(self, in_channels, middle, out_channels, kernel_size=3, padding=1, stride=1):
        super().__init__()
        self.first = nn.Conv2d(in_channels, middle, kernel_size, stride, padding)
        self.first_norm = nn.BatchNorm2d(middle)
        self.second = nn.Conv2d(middle, out_channels, kernel_size, 1, padding)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.inner_path = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.inner_norm = nn.BatchNorm2d(out_channels)
        self.gate = SeedGate(out_channels)
        self.outer_path = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.outer_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        deep = torch.relu(self.first_norm(self.first(x)))
        deep = self.second_norm(self.second(deep))
        inner = torch.relu(deep + self.inner_norm(self.inner_path(x)))
        y = inner * self.gate(inner)
        return y + self.outer_norm(self.outer_path(x))


NAMES = {
    "conv1": "first",
    "bn1": "first_norm",
    "conv2": "second",
    "bn2": "second_norm",
    "downsample.0": "inner_path",
    "downsample.1": "inner_norm",
    "se.fc1": "gate.linear1",
    "se.fc2": "gate.linear2",
    "outer.0": "outer_path",
    "outer.1": "outer_norm",
}


def copied(unit: NestedUnit, seed: SeedBlock) -> NestedUnit:
    state = seed.state_dict()
    ours = unit.state_dict()
    for key in ours:
        layer, _, leaf = key.rpartition(".")
        ours[key] = state.pop(f"{NAMES[layer]}.{leaf}").reshape(ours[key].shape)
    assert not state
    unit.load_state_dict(ours)
    return unit


@pytest.mark.parametrize(
    ("in_channels", "middle", "out_channels", "kernel_size", "padding", "stride"),
    [
        (3, 16, 32, 3, 1, 1),
        (16, 16, 16, 3, 1, 1),
        (8, 24, 64, 5, 2, 1),
        (4, 32, 16, 1, 0, 1),
        (6, 10, 48, 7, 3, 2),
    ],
)
def test_the_literal_unit_equals_the_seeds_block(
    in_channels, middle, out_channels, kernel_size, padding, stride, randomize
):
    seed = randomize(SeedBlock(in_channels, middle, out_channels, kernel_size, padding, stride))
    unit = NestedUnit(
        in_channels,
        out_channels,
        stride,
        middle_channels=middle,
        kernel_size=kernel_size,
        padding=padding,
        literal=True,
    )
    copied(unit, seed)
    x = torch.randn(4, in_channels, 11, 9, requires_grad=True)
    for training in (False, True):
        actual, expected = unit.train(training)(x), seed.train(training)(x)
        assert expected.min() < -0.1  # a ReLU would show
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_the_unit_of_the_network_is_the_relu_of_the_literal_one(randomize):
    literal, usual = NestedUnit(4, 32, literal=True), NestedUnit(4, 32)
    usual.load_state_dict(randomize(literal).state_dict())
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(usual.eval()(x), literal(x).relu())
    assert (literal.se.ratio, literal.se.fc1.out_channels) == (16, 2)
    assert literal.se.fc1.bias is not None


@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")
@pytest.mark.parametrize(
    ("middle", "kernel_size"), [(None, 3), ([8, 12, 20], 3), ([16, 16, 16], 5)]
)
def test_the_literal_network_is_a_chain_of_the_seeds_blocks(middle, kernel_size, randomize):
    options = {"literal": True, "ratio": 16, "middle_widths": middle, "kernel_size": kernel_size}
    network = randomize(se_nested(in_channels=3, **options))
    x = torch.randn(2, 3, 28, 28)
    expected = network.bn1(network.conv1(x)).relu()
    shapes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    for number, (before, after, stride) in enumerate(shapes):
        width = after if middle is None else middle[number]
        seed = SeedBlock(before, width, after, kernel_size, kernel_size // 2, stride).eval()
        unit = network.get_submodule(f"layer{number + 1}")
        state = {f"{NAMES[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
                 for k, v in unit.state_dict().items()}  # fmt: skip
        own = seed.state_dict()
        seed.load_state_dict({key: v.reshape(own[key].shape) for key, v in state.items()})
        expected = seed(expected)
    expected = network.fc(expected.mean((2, 3)))
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    module = SENestedModule(in_channels=3, **options)
    load_weights(module, network.state_dict())
    torch.testing.assert_close(module.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, r"`kernel_size` \(=4\) must be odd"),
        ({"kernel_size": 3, "padding": 0}, r"`padding` \(=0\) must be 1 with `kernel_size` \(=3\)"),
        ({"kernel_size": 5, "padding": 1}, r"`padding` \(=1\) must be 2"),
        ({"middle_channels": 0}, r"`middle_channels` \(=0\) must be a whole number"),
        ({"literal": 1}, r"`literal` \(=1\) must be true or false"),
    ],
)
def test_wrong_options_of_the_unit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NestedUnit(3, 16, **options)


@pytest.mark.parametrize("widths", [[8], 8, "8,8,8", [8, 8, 0]])
def test_wrong_middle_widths_are_refused(widths):
    with pytest.raises(ValueError, match="middle_"):
        SENested(middle_widths=widths)


def test_a_literal_checkpoint_does_not_load_into_the_other_network():
    from se_lightning.models.weights.structure import structure

    options = {"in_channels": 1, "ratio": 4}
    literal, usual = SENested(literal=True, **options), SENested(**options)
    content = {
        "state_dict": literal.state_dict(),
        "se_lightning": {"structure": structure(literal)},
    }
    with pytest.raises(ValueError, match=r"layer1 is NestedUnit\(literal=True\) in the checkpoint"):
        load_weights(usual, content)
    load_weights(SENested(literal=True, **options), content)


def test_a_unit_takes_any_gate():
    for options in ({"gate": "none"}, {"gate": "spatial"}, {"squeeze": "max", "ratio": 4}):
        unit = NestedUnit(3, 16, 2, Excitation(**options), literal=True)
        assert unit(torch.zeros(1, 3, 7, 7)).shape == (1, 16, 4, 4)
