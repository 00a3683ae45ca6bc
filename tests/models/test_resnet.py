"""Placements, stages and custom members of the residual families."""

import pytest
import torch
from torch import nn

from se_lightning import models
from se_lightning.models import SEPreActResNet, SEResNet, SEResNeXt, create_model, hidden_widths
from se_lightning.models.layers.options import PLACEMENTS, Excitation
from se_lightning.models.preact_resnet import PreActBasicBlock, PreActBottleneck
from se_lightning.models.resnet import BasicBlock, Bottleneck


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def added(name="se_resnet50", **options) -> int:
    """Count the parameters that the gates add, without biases by default."""
    with torch.device("meta"):
        gated = create_model(name, **{"se_bias": False, **options})
        return parameters(gated) - parameters(create_model(name, gate="none"))


@pytest.mark.parametrize(
    ("stages", "count"), [([1], 24_576), ([2], 131_072), ([3], 786_432), ([4], 1_572_864)]
)
def test_each_stage_adds_the_papers_parameters(stages, count):
    """2 / r * N * C ** 2 of arXiv:1709.01507, section 4; the paper's SE_2 is stage 1."""
    assert added(stages=stages) == count
    assert added(stages=stages) == added(stages=tuple(stages), placement="post")


def test_an_empty_list_of_stages_means_no_gates():
    assert added(stages=[]) == 0
    assert added(stages=[1, 2, 3, 4]) == added() == 2_514_944
    with torch.device("meta"):
        model = create_model("se_resnet50", stages=[2, 4])
    assert {path.split(".")[0] for path in hidden_widths(model)} == {"layer2", "layer4"}


@pytest.mark.parametrize(
    ("placement", "count"),
    [
        ("standard", 2_514_944),
        ("pre", 1_991_168),  # the first blocks see the stage before
        ("post", 2_514_944),
        ("identity", 2_514_944),
        ("inner", 157_184),  # Table 15: 25.8M with the norms' statistics
    ],
)
def test_each_placement_adds_the_expected_parameters_to_se_resnet50(placement, count):
    assert added(placement=placement) == count


def test_each_stage_can_have_its_own_ratio():
    with torch.device("meta"):
        model = create_model("se_resnet50", ratio=[2, 4, 8, 16])
    widths = hidden_widths(model)
    firsts = [widths[f"layer{stage}.0.se"] for stage in (1, 2, 3, 4)]
    assert firsts == [256 // 2, 512 // 4, 1024 // 8, 2048 // 16]


class Tripled(nn.Module):
    """Replaces a gate to reveal its position."""

    def forward(self, x):
        return 3 * x


def tripled(kind, placement, stride=2):
    """Build a unit whose gate triples its input."""
    torch.manual_seed(0)
    unit = kind(8, 4, stride, Excitation(placement=placement)).eval()
    unit.se = Tripled()
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 1.0)
    return unit


def at(place, placement):
    return 3 if place == placement else 1


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_post_activation_unit_has_its_gate_at_the_placement(kind, placement):
    """Figure 5 of the paper, step by step."""
    unit = tripled(kind, placement)
    x = torch.randn(2, 8, 6, 6)
    entry = at("pre", placement) * x
    if kind is BasicBlock:
        first = torch.relu(at("inner", placement) * unit.bn1(unit.conv1(entry)))
        last = unit.bn2(unit.conv2(first))
    else:
        first = torch.relu(unit.bn1(unit.conv1(entry)))
        middle = torch.relu(at("inner", placement) * unit.bn2(unit.conv2(first)))
        last = unit.bn3(unit.conv3(middle))
    shortcut = at("identity", placement) * unit.downsample(x)
    total = torch.relu(at("standard", placement) * last + shortcut)
    torch.testing.assert_close(unit(x), at("post", placement) * total)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", [PreActBasicBlock, PreActBottleneck])
def test_a_pre_activation_unit_has_its_gate_at_the_placement(kind, placement):
    unit = tripled(kind, placement)
    x = torch.randn(2, 8, 6, 6)
    activated = torch.relu(unit.bn1(x))
    first = unit.conv1(at("pre", placement) * activated)
    if kind is PreActBasicBlock:
        last = unit.conv2(torch.relu(unit.bn2(at("inner", placement) * first)))
    else:
        middle = at("inner", placement) * unit.conv2(torch.relu(unit.bn2(first)))
        last = unit.conv3(torch.relu(unit.bn3(middle)))
    shortcut = at("identity", placement) * unit.downsample(activated)
    total = at("standard", placement) * last + shortcut
    torch.testing.assert_close(unit(x), at("post", placement) * total)


def test_a_pre_activation_unit_of_the_same_width_keeps_its_input():
    unit = PreActBasicBlock(4, 4, 1, Excitation(gate="none")).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(unit(x), x)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["se_resnet20", "se_preact_resnet20", "se_resnext29_8x64d"])
def test_every_placement_trains(name, placement):
    model = create_model(name, ratio=4, placement=placement, gate="concurrent")
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_shake_shake_and_inception_resnet_have_no_inner_placement():
    for name in ("se_shake_shake26_2x96d", "se_inception_resnet_v2"):
        with pytest.raises(ValueError, match=r"`placement` \(='inner'\) must be one of standard"):
            create_model(name, placement="inner")


def test_stride_in_moves_the_stride_to_the_first_1x1():
    default, paper = SEResNet(50), SEResNet(50, stride_in="1x1")
    block, release = default.layer2[0], paper.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    assert (release.conv1.stride, release.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("net", [SEResNet, SEPreActResNet])
@pytest.mark.parametrize(("bottleneck", "expansion"), [(False, 1), (True, 4)])
def test_custom_depths_and_widths_are_built(net, bottleneck, expansion):
    model = net(
        [1, 2, 1, 1, 2], [8, 12, 20, 24, 40], bottleneck=bottleneck, width_factor=2,
        num_classes=5, ratio=[1, 2, 4, 8, 16], stages=[1, 5],
    )  # fmt: skip
    assert model.num_features == 40 * 2 * expansion
    assert model.reduction == 64
    assert set(hidden_widths(model).values()) == {16 * expansion, 80 * expansion // 16}
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_the_101_layer_network_of_the_keras_seed_can_be_built():
    """Its [3, 6, 23, 3] has two blocks too many; executed, it has 49,909,312 parameters."""
    with torch.device("meta"):
        model = SEPreActResNet([3, 6, 23, 3], bottleneck=True, literal=True)
    assert parameters(model) == 49_909_312


def test_custom_groups_are_built():
    model = SEResNeXt([1, 1], [16, 32], cardinality=4, group_width=32, stem="cifar", num_classes=3)
    assert [model.layer1[0].conv2.groups, model.layer2[0].conv2.out_channels] == [4, 64]
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("builder", "options", "message"),
    [
        ("se_resnet20", {"stem": "big"}, "`stem`"),
        ("se_preact_resnet18", {"stem": "deep"}, "`stem`"),
        ("se_resnet20", {"num_classes": -1}, "`num_classes`"),
        ("se_resnet20", {"num_classes": True}, "`num_classes`"),
        ("se_resnet20", {"global_pool": "min"}, "`global_pool` .* one of avg, max, avgmax, ''"),
        ("se_resnet20", {"global_pool": ""}, "`global_pool` .* needs pooled features"),
        ("se_resnet20", {"in_channels": 1.5}, "`in_channels`"),
        ("se_resnet50", {"stride_in": "5x5"}, "`stride_in`"),
        ("se_resnet18", {"stride_in": "1x1"}, "BasicBlock .* Use bottlenecks"),
        ("se_resnet18", {"cardinality": 2}, "BasicBlock .* Use bottlenecks"),
        ("se_resnet20", {"ceil_pool": True}, "`ceil_pool`"),
        ("se_resnet50", {"width_factor": 0}, "`width_factor`"),
        ("se_resnet50", {"widths": [64]}, "`depth` .* and `widths`"),
        ("se_resnet50", {"widths": [64, 0, 1, 1]}, "`widths`"),
        ("se_resnet50", {"ratio": [1, 2]}, "one per stage; the network has 4 stages"),
        ("se_resnet50", {"ratio": [1, 2, 3, 0]}, r"`ratio` \(=0\)"),
        ("se_resnet50", {"stages": [0]}, r"`stages` .* from 1 to 4"),
        ("se_resnet50", {"stages": [5]}, r"`stages` .* from 1 to 4"),
        ("se_resnet50", {"stages": "all"}, r"`stages` .* from 1 to 4"),
        ("se_resnet50", {"stages": 1}, r"`stages` .* from 1 to 4"),
        ("se_resnet50", {"placement": "inside"}, "`placement` .* one of standard, pre, post"),
        ("se_resnet50", {"growth_rate": 3}, "SE-ResNet has no option `growth_rate`"),
        ("se_resnet50", {"merge": "max"}, r"`merge` .* applies only to gate=concurrent\."),
        (
            "se_resnet50",
            {"gate": "spatial", "squeeze": "max"},
            "only to gate=channel or conc",
        ),
        ("se_resnet50", {"se_bias": "no"}, "`se_bias`"),
        ("se_resnet50", {"divisor": 0}, "`divisor`"),
        ("se_resnet50", {"ceil_pool": "maybe"}, "`ceil_pool` .* true or false"),
        ("se_resnet50", {"bottleneck": "no"}, "`bottleneck` .* true or false"),
        ("se_resnet50", {"relu_before_gate": 1}, "`relu_before_gate` .* true or false"),
        ("se_preact_resnet18", {"literal": "yes"}, "`literal` .* true or false"),
        ("se_inception_v3", {"aux": "yes"}, "`aux` .* true or false"),
        ("se_densenet121", {"bottleneck": "yes"}, "`bottleneck` .* true or false"),
        ("se_simple", {"residual": "yes"}, "`residual` .* true or false"),
        ("se_vgg16_bn", {"dropout": "abc"}, "`dropout` .* from 0 to below 1"),
        ("senet154", {"dropout": 1}, "`dropout` .* from 0 to below 1"),
        ("se_resnext50_32x4d", {"cardinality": 0}, "`cardinality`"),
        ("se_wrn16_8", {"placement": "x"}, "`placement`"),
        ("se_densenet121", {"compression": 0}, "`compression`"),
        ("se_densenet121", {"growth_rate": 0}, "`growth_rate`"),
        ("se_densenet121", {"gates_after": "all"}, "`gates_after`"),
        ("se_mobilenet", {"alpha": 0}, "`alpha`"),
        ("se_mobilenet", {"alpha": "wide"}, "`alpha`"),
        ("se_shufflenet", {"groups": 5}, "`groups` .* one of 1, 2, 3, 4, 8"),
        ("se_shake_shake26_2x96d", {"backward": "odd"}, "`backward`"),
        ("se_simple", {"image_size": 0}, "`image_size`"),
        ("se_simple", {"ratio": [2]}, "must be one number: the network has no stages"),
        ("se_simple", {"stages": [1]}, "no option `stages`"),
    ],
)
def test_a_wrong_option_is_refused_by_name(builder, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(builder, **options)


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (models.SEResNet, (19,), r"There is no SE-ResNet of depth 19\. Use one of 18, 20, 32"),
        (models.SEResNet, ([],), "`depth`"),
        (models.SEResNet, ([2, 0],), "`depth`"),
        (models.SEResNet, ("50",), "There is no SE-ResNet of depth '50'"),
        (models.SEWideResNet, (17,), "6n [+] 4"),
        (models.SEDenseNet, (122,), "`depth` .* 6n [+] 4"),
        (models.SEDenseNet, ([6, -1],), "`depth`"),
        (models.SEShakeShake, (27,), "6n [+] 2"),
    ],
)
def test_a_wrong_depth_is_refused(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        net(*arguments)


def test_an_unknown_name_gets_the_nearest_names():
    with pytest.raises(ValueError, match=r"no model 'se_resnet5'.*se_resnet50"):
        create_model("se_resnet5")


def test_pooled_features_are_the_mean_over_space():
    model = create_model("se_resnet20", ratio=4)
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(1)(features).flatten(1))
