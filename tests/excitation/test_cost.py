import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_lightning.excitation.cost import excitation_cost
from se_lightning.models import SpatialExcitation, SqueezeExcitation, se_resnet20, se_resnet50

BUILDERS = {
    "se_lightning": lambda: se_resnet20(ratio=4),
    "se_lightning, concurrent": lambda: se_resnet20(ratio=4, gate="concurrent"),
    "timm": lambda: timm.create_model("mobilenetv3_small_050"),
    "torchvision": torchvision.models.mobilenet_v3_small,
}


def multiply_adds(net, images):
    """Return torch's count over ATen operators."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(images)
    return counter.get_total_flops() / 2 / len(images)


def papers_net(**options):
    """Return the paper's SE-ResNet-50, with the stride in the first 1x1, on the meta device."""
    with torch.device("meta"):
        return se_resnet50(se_bias=False, stride_in="1x1", **options), torch.zeros(1, 3, 224, 224)


def test_se_resnet50_adds_the_papers_parameters_in_each_stage():
    """The paper's closed form is 2 C^2 / r per block."""
    costs = excitation_cost(*papers_net())
    for stage, parameters in enumerate((24_576, 131_072, 786_432, 1_572_864), 1):
        here = [cost for cost in costs if cost.layer.startswith(f"layer{stage}.")]
        assert sum(cost.parameters for cost in here) == parameters
        assert all(cost.parameters == 2 * cost.channels**2 / 16 for cost in here)
    # Each weight is used in one product per image.
    assert all(cost.multiply_adds == cost.parameters for cost in costs)


def test_se_resnet50_has_the_papers_gflops():
    """Table 2: 3.86 for ResNet-50, and 3.87 with gates, including squeeze and rescaling."""
    net, images = papers_net()
    costs = excitation_cost(net, images)
    gates = sum(cost.multiply_adds for cost in costs)
    rescaling = sum(cost.rescaling for cost in costs)
    plain = multiply_adds(net, images) - gates
    assert round(plain / 1e9, 2) == 3.86
    assert round((plain + gates + rescaling) / 1e9, 2) == 3.87
    assert sum(cost.operation_share for cost in costs) == pytest.approx(
        (gates + rescaling) / (plain + gates + rescaling)
    )


def test_se_resnet50_without_squeeze_has_the_papers_gflops():
    """Table 16: 4.27 for NoSqueeze."""
    net, images = papers_net(squeeze="none")
    costs = excitation_cost(net, images)
    plain = multiply_adds(net, images) - sum(cost.multiply_adds for cost in costs)
    # Blocks, channels and side length of each stage; only the rescaling counts.
    stages = ((3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7))
    rescaling = sum(blocks * channels * side**2 for blocks, channels, side in stages)
    assert sum(cost.rescaling for cost in costs) == rescaling
    total = plain + sum(cost.multiply_adds for cost in costs)
    assert round(total / 1e9, 2) == 4.27


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_cost_agrees_with_torchs_count(name, size):
    net, images = BUILDERS[name]().train(), torch.rand(size, 3, 48, 48)
    costs = excitation_cost(net, images)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    gates = sum(cost.multiply_adds + cost.rescaling for cost in costs)
    share = sum(cost.operation_share for cost in costs)
    rescaling = sum(cost.rescaling for cost in costs)
    assert gates / share == pytest.approx(multiply_adds(net, images) + rescaling)
    for cost in costs:
        module = net.get_submodule(cost.layer)
        assert cost.parameters == sum(p.numel() for p in module.parameters())


def test_the_cost_of_a_block_equals_that_by_hand():
    block = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), SqueezeExcitation(8, ratio=2))
    (cost,) = excitation_cost(block, torch.zeros(2, 3, 6, 6))
    assert (cost.layer, cost.channels, cost.hidden) == ("1", 8, 4)
    assert cost.parameters == 2 * 8**2 / 2 + 8 + 4
    assert cost.multiply_adds == 2 * 8 * 4
    assert cost.rescaling == 2 * 8 * 4 * 4
    assert cost.parameter_share == 76 / (76 + 8 * 27)
    assert cost.operation_share == (64 + 256) / (64 + 256 + 8 * 27 * 16)
    (cost,) = excitation_cost(SpatialExcitation(8), torch.zeros(1, 8, 4, 4))
    assert (cost.hidden, cost.parameters, cost.multiply_adds) == (0, 9, 8 * 16)
    assert cost.rescaling == 8 * 16


def test_a_model_without_gates_is_refused():
    with pytest.raises(ValueError, match=r"\(=Linear\) has no squeeze-and-excitation gates"):
        excitation_cost(nn.Linear(2, 2), torch.zeros(1, 2))
