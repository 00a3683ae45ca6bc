"""Options that the networks' sources have, compared with references."""

import copy
import itertools
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from se_lightning.models import SEDenseNet, SEMobileNet, SEPreActResNet, SEResNet, create_model
from se_lightning.models.mobilenet import SeparableBlock


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("depth", [(2, 3, 2, 2), (1, 1)])
def test_densenets_dropout_is_torchvisions(rate, depth):
    oracle = torchvision.models.DenseNet(8, depth, 16, drop_rate=rate, num_classes=10)
    model = SEDenseNet(
        list(depth), 8, init_features=16, stem="imagenet", gate="none", dropout_rate=rate,
        num_classes=10,
    )  # fmt: skip
    model.load_state_dict(oracle.state_dict())
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for network in (model.train(), oracle.train()):
        torch.manual_seed(1)
        outputs.append(network(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), oracle.eval()(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(model(x), model(x))


def test_dropout_without_bottlenecks_follows_the_only_convolution():
    model = SEDenseNet([2], 8, bottleneck=False, dropout_rate=0.5, ratio=2).train()
    layer = model.features.denseblock1.denselayer1
    out = layer(torch.ones(4, 16, 8, 8) + torch.randn(4, 16, 8, 8))
    zeros = (out[:, 16:] == 0).double().mean()
    assert 0.35 < float(zeros) < 0.65
    assert (out[:, :16] != 0).all()


@pytest.mark.parametrize(("channels", "out", "multiplier"), [(8, 16, 1), (8, 12, 2), (3, 8, 3)])
def test_a_depth_multiplier_gives_each_channel_several_filters(channels, out, multiplier):
    from se_lightning.models import Excitation

    block = SeparableBlock(channels, out, 2, Excitation(gate="none"), multiplier).eval()
    x = torch.randn(2, channels, 9, 9)
    maps = [
        F.conv2d(x[:, c : c + 1], block.conv_dw.weight[c * multiplier + k][None], None, 2, 1)
        for c in range(channels)
        for k in range(multiplier)
    ]  # Keras's order of channels, too
    y = F.relu6(block.bn1(torch.cat(maps, 1)))
    expected = F.relu6(block.bn2(block.conv_pw(y)))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("alpha", "multiplier"), [(1.0, 2), (0.5, 3), (0.25, 1)])
def test_mobilenets_parameters_with_a_depth_multiplier(alpha, multiplier):
    """By the layers of keras.applications.MobileNet, counting weights and trained norms."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    widths = [int(width * alpha) for width in widths]
    count = 27 * widths[0] + 2 * widths[0]
    for before, after in itertools.pairwise(widths):
        inner = before * multiplier
        count += 9 * inner + 2 * inner + inner * after + 2 * after
    count += (widths[-1] + 1) * 1000
    with torch.device("meta"):
        model = SEMobileNet(alpha=alpha, depth_multiplier=multiplier, gate="none")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("kind", "options", "stem"),
    [
        (SEResNet, {"depth": [1, 1], "widths": [8, 16], "stem_width": 24}, 24),
        (SEResNet, {"depth": [1, 1], "widths": [8, 16], "stem": "deep", "stem_width": 12}, 24),
        (SEResNet, {"depth": 20, "stem_width": 8}, 8),
        (SEResNet, {"depth": [1], "widths": [8], "bottleneck": True, "stem_width": 16}, 16),
        (SEPreActResNet, {"depth": 20, "stem_width": 10}, 10),
        (SEPreActResNet, {"depth": [1, 1], "widths": [8, 16], "stem_width": 32}, 32),
    ],
)
def test_the_width_of_the_stem_is_independent_of_the_stages(kind, options, stem):
    model = kind(ratio=4, num_classes=10, **options)
    usual = kind(ratio=4, num_classes=10, **{k: v for k, v in options.items() if k != "stem_width"})
    assert model.feature_info[0].channels == stem
    assert model.num_features == usual.num_features
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    differing = {
        key.rpartition(".")[0]
        for key, tensor in model.state_dict().items()
        if key not in usual.state_dict() or usual.state_dict()[key].shape != tensor.shape
    }
    assert all(path.startswith(("conv1", "bn1", "layer1.0.")) for path in differing)


@pytest.mark.parametrize("name", ["se_resnet20", "se_mobilenet", "se_densenet40_12", "se_nested"])
def test_he_normal_is_that_of_keras(name):
    """A normal distribution cut off at two deviations, with variance 2 / fan-in."""
    torch.manual_seed(0)
    model = create_model(name, init="he_normal", ratio=4)
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 4000:
            variance = 2 / module.weight[0].numel()
            found = module.weight.detach()
            assert float(found.var()) == pytest.approx(variance, rel=0.15)
            assert float(found.mean().abs()) < 4 * math.sqrt(variance / found.numel())
            limit = 2 * math.sqrt(variance) / 0.87962566103423978
            assert 0.9 * limit < float(found.abs().max()) <= limit * (1 + 1e-6)
            assert module.bias is None or not module.bias.any()
            checked += 1
    assert checked >= 1


def test_the_usual_initialization_stays_what_it_was():
    """By fan-out, as torchvision's."""
    torch.manual_seed(0)
    model = create_model("se_resnet20", ratio=4)
    weight = model.layer3[0].conv1.weight.detach()  # 32 to 64
    assert float(weight.var()) == pytest.approx(2 / (64 * 9), rel=0.1)
    same = copy.deepcopy(model)
    same.reset_classifier(5)
    assert torch.equal(same.layer3[0].conv1.weight, weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "se_resnet20",
            {"init": "xavier"},
            r"`init` \(='xavier'\) must be one of fan_out",
        ),
        ("se_resnet20", {"stem_width": 0}, r"`stem_width` \(=0\)"),
        ("se_preact_resnet20", {"stem_width": 1.5}, r"`stem_width` \(=1\.5\)"),
        ("se_mobilenet", {"depth_multiplier": 0}, r"`depth_multiplier` \(=0\)"),
        ("se_densenet40_12", {"dropout_rate": 1}, r"`dropout_rate` \(=1\)"),
        ("se_vgg16_bn", {"dropout_rate": 0.5}, "dropout_rate"),
    ],
)
def test_wrong_values_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, ratio=4, **options)
