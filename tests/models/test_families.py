"""Features of single families, compared with hand calculations or other implementations."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from se_lightning.models import (
    SEBNInception,
    SEDenseNet,
    SEMobileNet,
    SENested,
    SEShakeShake,
    SEShuffleNet,
    SESimple,
    create_model,
)
from se_lightning.models.layers.gates import SqueezeExcitation
from se_lightning.models.layers.inception_block import HalvingPool
from se_lightning.models.shake_shake import SkipConnection, shake
from se_lightning.models.shufflenet import shuffle


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gates(model: nn.Module) -> list[str]:
    return [path for path, m in model.named_modules() if isinstance(m, SqueezeExcitation)]


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        ("block", {"denseblock1.se", "denseblock2.se", "denseblock3.se"}),
        ("transition", {"transition1.se", "transition2.se"}),
    ],
)
def test_densenet_gates_can_follow_blocks_or_transitions_only(after, ends):
    model = create_model("se_densenet40_12", gates_after=after)
    assert {path.removeprefix("features.") for path in gates(model)} == ends
    both = len(gates(create_model("se_densenet40_12")))
    assert both == 5


def test_a_densenet_stage_is_a_block_with_its_transition():
    model = create_model("se_densenet_bc100_12", stages=[2])
    assert gates(model) == ["features.denseblock2.se", "features.transition2.se"]


@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")
def test_custom_densenets_have_the_expected_sizes():
    """The Keras seed uses 32 layers per block for its "100, bottleneck": 2,636,938 parameters."""
    with torch.device("meta"):
        assert parameters(SEDenseNet([32, 32, 32], 12, num_classes=10)) == 2_636_938
    net = SEDenseNet([2, 3], 6, bottleneck=False, compression=0.7, init_features=10, num_classes=4)
    assert net.num_features == int((10 + 2 * 6) * 0.7) + 3 * 6
    assert net(torch.randn(2, 3, 9, 9)).shape == (2, 4)


def test_a_gate_after_a_transition_sees_the_pooled_map():
    model = create_model("se_densenet40_12")
    seen = {}
    model.features.transition1.se.register_forward_hook(
        lambda module, inputs, output: seen.update(shape=inputs[0].shape)
    )
    model(torch.randn(2, 3, 32, 32))
    assert seen["shape"] == (2, 160, 16, 16)


@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")
def test_mobilenets_of_any_width_have_the_expected_parameters():
    def closed_form(alpha):
        widths = [int(w * alpha) for w in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        total = 27 * widths[0] + 2 * widths[0]
        for a, b in pairwise(widths):
            total += 9 * a + 2 * a + a * b + 2 * b + 2 * b * max(1, b // 16)
        return total + widths[-1] * 1000 + 1000

    for alpha in (0.25, 0.5, 0.75, 1, 1.3):
        with torch.device("meta"):
            assert parameters(SEMobileNet(alpha=alpha)) == closed_form(alpha)


# Counts of the plain networks that osmr/imgclsmob prints.
@pytest.mark.parametrize(
    ("groups", "count"),
    [(1, 1_531_936), (2, 1_733_848), (3, 1_865_728), (4, 1_968_344), (8, 2_434_768)],
)
def test_shufflenets_with_any_groups_have_the_published_parameters(groups, count):
    with torch.device("meta"):
        assert parameters(SEShuffleNet(groups=groups, gate="none")) == count


def test_shuffle_equals_torchs():
    x = torch.randn(2, 12, 3, 3)
    torch.testing.assert_close(shuffle(x, 3), nn.ChannelShuffle(3)(x))


def test_halving_pool_equals_caffes_on_even_sizes():
    x = torch.randn(2, 3, 28, 14)
    torch.testing.assert_close(HalvingPool()(x), F.max_pool2d(x, 3, stride=2, ceil_mode=True))
    assert HalvingPool()(torch.randn(1, 1, 7, 5)).shape == (1, 1, 4, 3)


def test_bn_inception_takes_odd_maps():
    with torch.device("meta"):
        model = SEBNInception(num_classes=10).eval()
        assert model(torch.empty(1, 3, 229, 197)).shape == (1, 10)


def test_a_shake_matches_a_hand_calculation(monkeypatch):
    shares = torch.tensor([[0.25], [0.5]]).view(2, 1, 1, 1, 1)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self: self.copy_(shares))
    first = torch.tensor([4.0, 8.0]).view(1, 1, 1, 2).requires_grad_()
    second = torch.tensor([0.0, -4.0]).view(1, 1, 1, 2).requires_grad_()
    for backward in ("shake", "even"):
        first.grad = second.grad = None
        mixed = shake(first, second, backward)
        # 0.25 * 4 + 0.75 * 0 and 0.25 * 8 + 0.75 * -4.
        torch.testing.assert_close(mixed, torch.tensor([1.0, -1.0]).view(1, 1, 1, 2))
        mixed.sum().backward()
        # Both backward shares are a half here, and not the forward quarter.
        assert first.grad.unique().tolist() == second.grad.unique().tolist() == [0.5]


def test_shakes_differ_between_images_and_are_even_in_evaluation():
    torch.manual_seed(0)
    ones, zeros = torch.ones(64, 1, 1, 1), torch.zeros(64, 1, 1, 1)
    shares = shake(ones, zeros, "shake").flatten()
    assert len(shares.unique()) == 64
    assert 0 <= shares.min() <= shares.max() <= 1
    unit = SEShakeShake(8, 4, gate="none", num_classes=3).layer1[0].eval()
    x = torch.randn(2, 16, 5, 5)
    expected = (unit.branch1(x) + unit.branch2(x)) / 2 + unit.downsample(x)
    torch.testing.assert_close(unit(x), expected)


def test_the_skip_connection_reads_every_other_pixel_and_its_neighbour():
    skip = SkipConnection(1, 2, 2).eval()
    with torch.no_grad():
        skip.conv1.weight.fill_(1.0)
        skip.conv2.weight.fill_(1.0)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    out = skip(x) * (1 + skip.bn.eps) ** 0.5
    expected = torch.tensor([[[1.0, 3.0], [9.0, 11.0]], [[6.0, 8.0], [14.0, 16.0]]])
    torch.testing.assert_close(out, expected[None])


def test_the_simple_network_matches_a_stepwise_calculation():
    torch.manual_seed(0)
    plain, residual = SESimple(), SESimple(residual=True)
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1, 28, 28)
    hidden = F.relu(F.conv2d(x, plain.conv1.weight, plain.conv1.bias, padding=1))
    squeezed = F.relu(hidden.mean((2, 3)) @ plain.se.fc1.weight.flatten(1).T)
    gated = hidden * torch.sigmoid(squeezed @ plain.se.fc2.weight.flatten(1).T)[:, :, None, None]
    for net, y in ((plain, gated), (residual, gated + hidden)):
        pixels = F.relu(F.conv2d(y, net.conv2.weight, net.conv2.bias)).flatten(1)
        torch.testing.assert_close(net(x), F.linear(pixels, net.fc.weight, net.fc.bias))


def test_the_gate_of_the_nested_network_acts_on_a_whole_residual_unit():
    unit = SENested().layer2.eval()
    x = torch.randn(2, 16, 6, 6)
    inner = unit.bn2(unit.conv2(F.relu(unit.bn1(unit.conv1(x))))) + unit.downsample(x)
    expected = F.relu(unit.se(F.relu(inner)) + unit.outer(x))
    torch.testing.assert_close(unit(x), expected)
    convolutions = [m for m in unit.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.bias is not None for conv in convolutions)


def test_inception_resnet_with_post_placement_has_the_44_gates_of_the_keras_seed():
    with torch.device("meta"):
        paths = gates(create_model("se_inception_resnet_v2", placement="post"))
        assert len(gates(create_model("se_inception_resnet_v2"))) == 40
    others = [path for path in paths if not path.startswith(("repeat", "block8"))]
    assert others == ["mixed_5b.se", "mixed_6a.se", "mixed_7a.se", "se"]
    assert len(paths) == 44


def test_default_ratios_are_the_published_ones():
    """16, but 2 in the small MNIST networks."""
    for name, ratio in (("se_simple", 2), ("se_nested", 2), ("se_mobilenet", 16)):
        model = create_model(name)
        assert {model.get_submodule(path).ratio for path in gates(model)} == {ratio}, name
