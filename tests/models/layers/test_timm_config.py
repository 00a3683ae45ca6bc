"""What timm's factories, transforms and optimizers read."""

import pytest
import timm
import timm.optim
import torch
from timm.models import group_parameters

from se_lightning.models import create_model, list_models
from se_lightning.models.layers.timm_config import layer_groups

pytestmark = pytest.mark.filterwarnings("ignore:ratio=")
TWINS = [
    ("se_resnet50", "seresnet50"),
    ("se_resnext50_32x4d", "seresnext50_32x4d"),
    ("se_inception_v3", "inception_v3"),
    ("se_inception_resnet_v2", "inception_resnet_v2"),
    ("se_mobilenet", "mobilenetv1_100"),
    ("se_densenet121", "densenet121"),
]


def built(name, **options):
    with torch.device("meta"):
        return create_model(name, **options).eval()


@pytest.mark.parametrize("name", list_models())
def test_the_config_describes_the_network(name):
    network = built(name)
    cfg = network.default_cfg
    assert cfg is network.pretrained_cfg
    weights = network.state_dict()
    first, last = (weights[f"{cfg[key]}.weight"] for key in ("first_conv", "classifier"))
    assert first.shape[1] == cfg["input_size"][0] == network.in_channels
    assert last.shape[0] == cfg["num_classes"] == network.num_classes
    maps = network.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert tuple(maps.shape[2:]) == cfg["pool_size"]
    resolved = timm.data.resolve_data_config(model=network)
    assert resolved["input_size"] == cfg["input_size"]
    assert resolved["mean"] == cfg["mean"]
    assert all(0 < value < 1 for value in (*cfg["mean"], *cfg["std"]))


@pytest.mark.parametrize(("name", "reference"), TWINS)
def test_layers_and_sizes_equal_timms(name, reference):
    with torch.device("meta"):
        oracle = timm.create_model(reference).pretrained_cfg
    cfg = built(name).pretrained_cfg
    keys = ["input_size", "pool_size", "num_classes", "first_conv", "classifier"]
    assert [cfg[key] for key in keys] == [oracle[key] for key in keys]


def test_channels_have_their_own_statistics():
    cfg = built("se_resnet18", in_channels=4).pretrained_cfg
    assert cfg["mean"] == (0.449,) * 4  # of 0.485, 0.456, 0.406
    assert built("se_simple").pretrained_cfg["mean"] == (0.1307,)
    assert built("se_simple", image_size=20).pretrained_cfg["input_size"] == (1, 20, 20)
    assert len(built("se_nested", in_channels=3).pretrained_cfg["std"]) == 3


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_has_a_group_in_the_order_of_depth(name):
    network = built(name)
    for coarse in (False, True):
        groups = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in network.named_parameters()}
        numbers = [groups[key] for key, _ in network.named_parameters()]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(max(numbers) + 1))
        classifier = f"{network.classifier_name}."
        last = [key for key, number in groups.items() if number == max(numbers)]
        assert any(key.startswith(classifier) for key in last)
        assert all(key.startswith(network.get_classifier(name_only=True).split(".")[0])
                   for key in last)  # fmt: skip
    assert network.no_weight_decay() == set()


@pytest.mark.parametrize("name", ["se_resnet18", "se_resnet50"])
def test_groups_equal_timms(name):
    """Those of timm's networks of the same names, coarse and fine."""
    network = built(name)
    with torch.device("meta"):
        oracle = timm.create_model(name.replace("se_", "se"))
    names = {key for key, _ in oracle.named_parameters()} & set(network.state_dict())
    assert len(names) > 50
    for coarse in (False, True):
        found, expected = (
            group_parameters(net, net.group_matcher(coarse=coarse), reverse=True)
            for net in (network, oracle)
        )
        assert {key: found[key] for key in names} == {key: expected[key] for key in names}


@pytest.mark.parametrize("name", ["se_resnet18", "se_densenet_bc100_12", "se_mobilenet"])
def test_timms_optimizer_decays_the_rate_with_depth(name):
    network = create_model(name)
    optimizer = timm.optim.create_optimizer_v2(network, "sgd", lr=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    scales = [scale[id(parameter)] for parameter in network.parameters()]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert scales[0] == min(scales) < 0.1


def test_a_gate_is_in_the_group_of_its_layer():
    groups = layer_groups(built("se_vgg16_bn"), coarse=False)["blocks"]
    numbers = {pattern.replace("\\", ""): number for pattern, (number,) in groups}
    # Layers of the second stage: convolution, norm, ReLU with gate.
    assert len({numbers[f"^features.{index}."] for index in (7, 8, 9)}) == 1
    assert numbers["^features.10."] == numbers["^features.7."] + 1
