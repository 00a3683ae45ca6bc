"""Order of the children, feature maps for dense tasks, and gradient checkpointing."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.models.feature_extraction import create_feature_extractor

from se_lightning.models import SESimple, create_model, list_models
from se_lightning.models.layers.fused import checks
from se_lightning.models.surgery.folded import put_in_place

# Image sizes at which every feature map has several pixels.
SIZES = {"se_inception_v3": 107, "se_inception_resnet_v2": 107, "se_simple": 28}
SIZES |= {"se_simple_residual": 28, "se_vgg16_bn": 64}
LARGE = ("senet154", "se_resnext29_8x64d", "se_vgg16_bn", "se_inception_resnet_v2")
FAMILIES = [
    "se_resnet50",
    "se_resnext29_8x64d",
    "senet154",
    "se_preact_resnet50",
    "se_preact_resnet20",
    "se_wrn16_8",
    "se_densenet121",
    "se_densenet_bc100_12",
    "se_inception_v3",
    "se_inception_resnet_v2",
    "se_bn_inception",
    "se_vgg16_bn",
    "se_mobilenet",
    "se_shufflenet",
    "se_shake_shake26_2x96d",
    "se_simple_residual",
    "se_nested",
]


FAMILIES = [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in FAMILIES]


def size_of(name: str) -> int:
    return SIZES.get(name, 64)


def on_meta(name, **options):
    """Return a network without memory, and images of a size that it was designed for."""
    with torch.device("meta"):
        network = create_model(name, **options).eval()
        size = 299 if network.min_size == 75 else 28 if network.in_channels == 1 else 64
        return network, torch.empty(2, network.in_channels, size, size)


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", list_models())
def test_children_stand_in_the_order_of_the_forward(name):
    network, x = on_meta(name)
    called = []
    for path, child in network.named_children():
        child.register_forward_pre_hook(lambda *_, path=path: called.append(path))
    logits = network(x)
    assert called == [path for path, _ in network.named_children()]
    assert called[-2:] == ["global_pool", network.classifier_name.partition(".")[0]]
    backbone = nn.Sequential(*list(network.children())[:-2])
    assert backbone(x).shape == network.forward_features(x).shape
    assert len(logits) == 2


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", FAMILIES)
def test_all_but_the_last_two_children_give_the_last_feature_map(name):
    network = create_model(name).eval()
    x = torch.randn(2, network.in_channels, size_of(name), size_of(name))
    backbone = nn.Sequential(*list(network.children())[:-2])
    pooled = nn.Sequential(*list(network.children())[:-1])
    with torch.no_grad():
        assert torch.equal(backbone(x), network.forward_features(x))
        features = network.forward_head(network.forward_features(x), pre_logits=True)
        if name != "se_vgg16_bn":  # its hidden layers belong to the classifier
            assert torch.equal(pooled(x).flatten(1), features)
        maps = network.forward_intermediates(x)[1]
        modules = [info.module for info in network.feature_info]
        stages = {path: path for path in modules if "." not in path}
        for path, found in IntermediateLayerGetter(network, stages)(x).items():
            assert torch.equal(found, maps[modules.index(path)])


# Of torchvision's networks with the same weights; the dropout would show in a training forward.
@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        ("se_resnet18", "resnet18", {"dropout": 0.5}),
        ("se_resnet50", "resnet50", {"dropout": 0.5}),
        ("se_resnext50_32x4d", "resnext50_32x4d", {"dropout": 0.9}),
    ],
)
def test_getters_give_what_torchvisions_networks_give(name, reference, options):
    oracle = torchvision.models.get_model(reference, num_classes=10)
    network = create_model(name, gate="none", num_classes=10, **options)
    network.load_state_dict(oracle.state_dict())
    x = torch.randn(2, 3, 64, 64)
    layers = {f"layer{number}": str(number) for number in range(1, 5)}
    found, expected = [
        [
            *IntermediateLayerGetter(copy.deepcopy(net).train(), layers)(x).values(),
            *create_feature_extractor(copy.deepcopy(net).eval(), layers)(x).values(),
            nn.Sequential(*list(net.children())[:-2]).eval()(x),
            nn.Sequential(*list(net.children())[:-1]).eval()(x),
        ]
        for net in (network, oracle)
    ]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_pyramid_has_the_maps_of_torchvisions():
    oracle = torchvision.models.resnet50(num_classes=10)
    network = create_model("se_resnet50", gate="none", num_classes=10, dropout=0.5)
    network.load_state_dict(oracle.state_dict())
    x = torch.randn(1, 3, 64, 64)
    layers = {f"layer{number}": str(number) for number in range(1, 5)}
    for build in (
        lambda net: BackboneWithFPN(net, layers, [256, 512, 1024, 2048], 16),
        lambda net: _resnet_fpn_extractor(net, trainable_layers=3),
    ):
        pyramids = []
        for net in (network, oracle):
            torch.manual_seed(0)
            pyramids.append(build(copy.deepcopy(net)).train()(x))
        for key, expected in pyramids[1].items():
            torch.testing.assert_close(pyramids[0][key], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["senet154", "se_inception_v3", "se_mobilenet", "se_vgg16_bn"])
def test_dropout_leaves_images_and_maps_alone(name):
    """In training, the dropout of these networks is 0.2, 0.5, 0.001 and 0.5."""
    with torch.device("meta"):
        network = create_model(name)
    backbone = list(network.children())[:-2]
    inside = [m for child in backbone for m in child.modules() if isinstance(m, nn.Dropout)]
    everywhere = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert not inside
    assert everywhere


def test_dropout_acts_on_pooled_features():
    network = create_model("se_mobilenet", dropout=0.75, num_classes=3).train()
    torch.manual_seed(0)
    pooled = network.forward_head(torch.ones(64, 1024, 2, 2), pre_logits=True)
    assert pooled.unique().tolist() == [0, 4]
    assert 0.7 < (pooled == 0).float().mean() < 0.8


def test_the_shortcut_around_a_gate_outlives_the_gate():
    """In the residual MNIST network the gate and its shortcut are one step."""
    network = SESimple(residual=True).eval()
    x = torch.randn(2, 1, 28, 28)
    hidden = network.act(network.conv1(x))
    put_in_place(network, "se", torch.full((32,), 0.5))
    expected = torch.relu(network.conv2(1.5 * hidden))
    for net in (network, copy.deepcopy(network)):
        torch.testing.assert_close(net.forward_features(x), expected)


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", list_models())
def test_feature_maps_have_the_channels_and_strides_of_feature_info(name):
    with torch.device("meta"):
        network = create_model(name).eval()
        size = 299 if "inception_" in name and name != "se_bn_inception" else 224
        size = 28 if name.startswith("se_simple") else size
        x = torch.empty(2, network.in_channels, size, size)
    last, maps = network.forward_intermediates(x)
    assert maps[-1] is last
    assert [info.channels for info in network.feature_info] == [m.shape[1] for m in maps]
    for info, feature_map in zip(network.feature_info, maps, strict=True):
        # Unpadded layers of the Inceptions lose up to four pixels.
        lost = 4 if "inception_" in name else 0
        assert 0 <= -(-size // info.reduction) - feature_map.shape[2] <= lost, info
    reductions = [info.reduction for info in network.feature_info]
    assert reductions == sorted(reductions)
    assert len(set(reductions)) >= min(3, len(reductions)) or name.startswith("se_simple")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("se_resnet50", "seresnet50"),
        ("senet154", "senet154"),
        ("se_inception_v3", "inception_v3"),
        ("se_inception_resnet_v2", "inception_resnet_v2"),
        ("se_vgg16_bn", "vgg16_bn"),
    ],
)
def test_channels_and_strides_equal_timms(name, reference):
    with torch.device("meta"):
        network, oracle = create_model(name), timm.create_model(reference)
    found = [(info.channels, info.reduction) for info in network.feature_info]
    assert found == [(info["num_chs"], info["reduction"]) for info in oracle.feature_info]


@pytest.mark.filterwarnings("ignore:ratio=")
# Shake-Shake mixes its branches differently in training.
@pytest.mark.filterwarnings("ignore:The nodes obtained by tracing the model in train mode")
@pytest.mark.parametrize("name", FAMILIES)
def test_feature_maps_equal_those_of_torchvisions_feature_extractor(name, monkeypatch):
    monkeypatch.setattr(checks, "ENABLED", False)  # a graph has single steps
    network = create_model(name).eval()
    size = size_of(name)
    x = torch.randn(2, network.in_channels, size, size)
    nodes = {info.module: str(index) for index, info in enumerate(network.feature_info)}
    with torch.no_grad():
        expected = create_feature_extractor(network, nodes)(x)
        last, maps = network.forward_intermediates(x)
        for index, feature_map in enumerate(maps):
            # Later layers have not modified a returned map in place.
            assert torch.equal(feature_map, expected[str(index)]), network.feature_info[index]
        assert torch.equal(network.forward_head(last), network(x))


def test_indices_select_the_same_maps_as_in_timm():
    network = create_model("se_resnet20", ratio=4).eval()
    oracle = timm.create_model("resnet18").eval()
    x = torch.randn(1, 3, 32, 32)
    everything = network.forward_intermediates(x)[1]
    for indices in (2, [0, 2], [-1], None):
        picked = network.forward_intermediates(x, indices)[1]
        count = len(oracle.forward_intermediates(x, indices=indices)[1]) if indices else 4
        assert len(picked) == count
        assert all(any(torch.equal(p, e) for e in everything) for p in picked)
    assert [m.shape[1] for m in network.forward_intermediates(x, 2)[1]] == [32, 64]
    with pytest.raises(ValueError, match=r"`indices` \(=\[4\]\) must select from 4 feature maps"):
        network.forward_intermediates(x, [4])


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_changes_neither_gradients_nor_running_statistics(name):
    plain = create_model(name)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    x = torch.randn(2, plain.in_channels, size_of(name), size_of(name))
    losses = []
    for network in (plain, checkpointed):
        torch.manual_seed(0)  # for dropout and Shake-Shake
        loss = network(x).square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    for (path, parameter), expected in zip(
        checkpointed.named_parameters(), plain.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=path)
    states = checkpointed.state_dict(), plain.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def saved_bytes(network, x) -> int:
    """Count the bytes that the forward pass saves for the backward pass."""
    total = 0
    weights = {parameter.data_ptr() for parameter in network.parameters()}

    def pack(tensor):
        nonlocal total
        total += 0 if tensor.data_ptr() in weights else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return total


@pytest.mark.parametrize(
    "name", ["se_resnet50", "se_densenet121", "se_vgg16_bn", "se_inception_v3"]
)
def test_checkpointing_saves_fewer_bytes(name):
    network = create_model(name)
    x = torch.randn(2, 3, 96, 96)
    before = saved_bytes(network, x)
    network.set_grad_checkpointing()
    assert saved_bytes(network, x) < before / 2
    network.set_grad_checkpointing(False)
    assert saved_bytes(network, x) == before


POOLED = [name for name in list_models() if not name.startswith(("se_vgg", "se_simple"))]


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", list_models())
def test_the_classifier_can_be_replaced_and_removed_as_in_timm(name):
    network, x = on_meta(name)
    maps = network.forward_features(x)
    path = network.get_classifier(name_only=True)
    assert network.get_classifier() is network.get_submodule(path)
    assert network.get_classifier().out_features == network.num_classes
    network.reset_classifier(0)
    assert network.num_classes == 0
    assert network.forward_head(maps).shape == (2, network.head_hidden_size)
    assert network.forward_head(maps, pre_logits=True).shape == (2, network.head_hidden_size)
    network.reset_classifier(0, "")
    assert network.forward_head(maps).shape == maps.shape
    with pytest.raises(ValueError, match=r"`global_pool` \(=''\) must be one of"):
        network.reset_classifier(5)
    assert network.forward_head(maps).shape == maps.shape  # unchanged
    network.reset_classifier(5, network.pools[0])
    assert network.forward_head(maps).shape == (2, 5)
    assert network.get_classifier().out_features == network.num_classes == 5
    with pytest.raises(ValueError, match="`num_classes`"):
        network.reset_classifier(-1)


@pytest.mark.filterwarnings("ignore:ratio=")
@pytest.mark.parametrize("name", list_models())
def test_a_network_can_be_built_without_classifier_and_pool(name):
    network, x = on_meta(name, num_classes=0)
    keys = {key for key, _ in network.named_parameters()}
    assert not any(key.startswith(f"{network.classifier_name}.") for key in keys)
    assert isinstance(network.get_classifier(), nn.Identity)
    maps = network.forward_features(x)
    assert network.forward_head(maps).shape == (2, network.head_hidden_size)
    if name in POOLED:
        network, _ = on_meta(name, num_classes=0, global_pool="")
        assert network.forward_head(maps).shape == maps.shape
        assert {key for key, _ in network.named_parameters()} == keys


@pytest.mark.parametrize("name", ["se_resnet20", "se_mobilenet", "se_densenet_bc100_12"])
def test_pools_equal_timms(name):
    for kind in ("avg", "max", "avgmax"):
        network = create_model(name, global_pool=kind, ratio=4).eval()
        maps = torch.randn(2, network.num_features, 5, 3)
        oracle = timm.layers.SelectAdaptivePool2d(pool_type=kind, flatten=True)
        found = network.forward_head(maps, pre_logits=True)
        torch.testing.assert_close(found, oracle(maps))
        assert torch.equal(network.forward_head(maps), network.get_classifier()(found))


def test_a_removed_classifier_of_vgg_leaves_no_unused_layers():
    with torch.device("meta"):
        network = create_model("se_vgg16_bn", num_classes=10)
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        network.reset_classifier(0, "")
        assert not any(key.startswith("classifier") for key in network.state_dict())
        network.reset_classifier(10, "max")
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == shapes
    assert network(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 10)


def test_intermediates_have_timms_options():
    network = create_model("se_resnet18", gate="none").eval()
    oracle = timm.create_model("resnet18").eval()
    oracle.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for options in (
        {"indices": [1, 3]},
        {"indices": 2, "norm": True},
        {"indices": [0, 2], "stop_early": True},
        {"indices": [-2], "stop_early": True, "intermediates_only": True},
        {"intermediates_only": True, "output_fmt": "NCHW"},
    ):
        with torch.no_grad():
            found = network.forward_intermediates(x, **options)
            expected = oracle.forward_intermediates(x, **options)
        if "intermediates_only" not in options:
            torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
            found, expected = found[1], expected[1]
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    for layout in ("NHWC", "NLC"):
        with pytest.raises(ValueError, match=rf"`output_fmt` \(='{layout}'\) must be 'NCHW'"):
            network.forward_intermediates(x, output_fmt=layout)


@pytest.mark.parametrize("wrapper", [FeatureListNet, FeatureGetterNet])
@pytest.mark.parametrize("name", ["se_resnet18", "se_mobilenet", "se_densenet_bc100_12"])
def test_timms_feature_wrappers_take_a_network(name, wrapper):
    network = create_model(name).eval()
    nested = wrapper is FeatureListNet and any("." in m.module for m in network.feature_info)
    net = wrapper(network, (1, 2, 3), **({"flatten_sequential": True} if nested else {}))
    with torch.no_grad():
        maps = net.eval()(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert net.feature_info.channels() == network.feature_info.channels((1, 2, 3))
