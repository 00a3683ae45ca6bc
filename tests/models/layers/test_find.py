import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning.excitation import find_gates
from se_lightning.models import find_excitations, se_resnet20, se_resnet50


def outputs_of_gates(model, pixels=64):
    """Return the gates of a network, and their outputs in a forward pass."""
    gates, values = find_gates(model), {}
    for path, gate in gates.items():
        gate.register_forward_hook(lambda m, i, o, path=path: values.setdefault(path, o))
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, pixels, pixels))
    return gates, values


def test_gates_are_in_order_of_depth():
    assert list(find_gates(se_resnet50()))[::5] == [
        "layer1.0.se", "layer2.2.se", "layer3.3.se", "layer4.2.se",
    ]  # fmt: skip


def test_spatial_and_concurrent_gates_are_found():
    gates, values = outputs_of_gates(se_resnet20(ratio=4, gate="concurrent", stages=[1]), pixels=16)
    paths = [f"layer1.{n}.se.{kind}" for n in range(3) for kind in ("channel", "spatial")]
    assert list(gates) == paths
    assert values["layer1.0.se.channel"].shape == (2, 16, 1, 1)
    assert values["layer1.0.se.spatial"].shape == (2, 1, 16, 16)
    assert list(find_gates(se_resnet20(gate="spatial", stages=[3]))) == [
        "layer3.0.se", "layer3.1.se", "layer3.2.se",
    ]  # fmt: skip


def test_a_network_with_gate_none_has_no_gates():
    assert find_gates(se_resnet20(gate="none")) == {}


def test_se_modules_of_timm_and_torchvision_are_found():
    for model, kind, count in (
        (timm.create_model("seresnet18"), "SEModule", 8),
        (timm.create_model("efficientnet_b0"), "SqueezeExcite", 16),
        (torchvision.models.mobilenet_v3_small(), "SqueezeExcitation", 9),
    ):
        modules = {p for p, m in model.named_modules() if type(m).__name__ == kind}
        gates, values = outputs_of_gates(model)
        assert set(gates) == modules == set(values)
        assert len(gates) == count
        for path, value in values.items():
            assert value.shape[2:] == (1, 1), path
            assert 0 <= value.min() <= value.max() <= 1


@pytest.mark.parametrize("name", timm.list_models("legacy_se*"))
def test_the_gates_of_timms_legacy_networks_are_found(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    modules = {path for path, m in model.named_modules() if type(m).__name__ == "SEModule"}
    assert set(find_gates(model)) == modules
    assert len(modules) >= 8
    for path, parts in find_excitations(model).items():
        module = model.get_submodule(path)
        assert (parts.reduce, parts.expand, parts.gate) == (module.fc1, module.fc2, module.sigmoid)
        assert (parts.channels, parts.hidden) == (module.fc2.out_channels, module.fc1.out_channels)


def test_other_modules_are_not_gates():
    assert find_gates(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid())) == {}
