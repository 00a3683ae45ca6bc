"""Feature maps for dense tasks, and gradient checkpointing."""

import copy

import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from se_lightning.models import create_model, list_models

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
def test_feature_maps_equal_those_of_torchvisions_feature_extractor(name):
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
