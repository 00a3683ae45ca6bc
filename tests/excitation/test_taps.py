import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning.excitation import Taps
from se_lightning.excitation.taps import eager, profile
from se_lightning.models import SqueezeExcitation, add_excitation, se_resnet20

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def recorded(net, images=IMAGES):
    with Taps(net, hidden=True) as taps, torch.no_grad():
        taps.record()
        net(images)
        return taps, *taps.take()


@pytest.mark.parametrize(
    ("net", "gate"),
    [
        (lambda: se_resnet20(ratio=4), "layer1.0.se.gate"),
        (lambda: timm.create_model("seresnet18"), "layer1.0.se.gate"),
        (lambda: timm.create_model("efficientnet_b0"), "blocks.0.0.se.gate"),
        (lambda: torchvision.models.mobilenet_v3_small(), "features.1.block.1.scale_activation"),
        (
            lambda: add_excitation(torchvision.models.resnet18(), "residual"),
            "layer1.0.bn2.se.gate",
        ),
    ],
    ids=["se_lightning", "SEModule", "SqueezeExcite", "torchvision", "added"],
)
def test_every_kind_of_gate_is_recorded_as_a_separate_hook_sees_it(net, gate):
    net, seen = net().eval(), []
    handle = net.get_submodule(gate).register_forward_hook(lambda m, i, o: seen.append(o))
    taps, gates, hidden = recorded(net)
    handle.remove()
    layer = taps.layers.index(gate.rpartition(".")[0])
    assert torch.equal(gates[layer][0], seen[0])
    assert [len(calls) for calls in gates] == [1] * len(taps.layers)
    assert all(calls[0].shape[1] == width for calls, width in zip(hidden, taps.hidden, strict=True))
    for calls, channels in zip(gates, taps.channels, strict=True):
        assert profile(calls[0], channels).shape == (3, channels)


def test_nothing_is_left_on_the_model():
    net = se_resnet20(ratio=4)
    before = {name: dict(module.__dict__) for name, module in net.named_modules()}
    recorded(net.eval())
    for name, module in net.train().named_modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert before[name].keys() == module.__dict__.keys()


def test_nothing_is_recorded_before_record_and_after_pause():
    net = se_resnet20(ratio=4).eval()
    with Taps(net) as taps:
        net(IMAGES)
        assert taps.take()[0][0] == []
        net(IMAGES)
        taps.pause()
        net(IMAGES)
        assert taps.take()[0][0] == []


def captured_by_hand(net):
    seen = []
    handles = [
        module.register_forward_hook(lambda m, i, o: seen.append(o))
        for name, module in net.named_modules()
        if name.endswith("se.gate")
    ]
    with eager(), torch.no_grad():
        net(IMAGES)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_taps_see_every_gate_of_a_compiled_network(how, late):
    """The taps are set before or after the first call; blocks share compiled code."""
    torch._dynamo.reset()
    net = se_resnet20(ratio=4).eval()
    by_hand = captured_by_hand(net)
    for module in [net] if how == "whole" else [*net.layer1, *net.layer2, *net.layer3]:
        module.compile(backend="aot_eager")
    if late:
        with torch.no_grad():
            net(IMAGES)
    with Taps(net) as taps, torch.no_grad():
        for _ in range(2):  # twice, so that both variants of the code are reused
            net(IMAGES)
            taps.record()
            net(IMAGES)
            gates, _ = taps.take()
            taps.pause()
            assert [len(calls) for calls in gates] == [1] * 9
            for (gate,), one in zip(gates, by_hand, strict=True):
                torch.testing.assert_close(gate, one)
    torch._dynamo.reset()


def test_paths_do_not_contain_the_wrapper_of_compiled_modules():
    net = nn.Sequential(torch.compile(nn.Sequential(SqueezeExcitation(4, 2)), backend="eager"))
    assert Taps(net).layers == ("0.0",)


def test_gates_recorded_in_training_are_detached():
    net = se_resnet20(ratio=4)
    with Taps(net) as taps:
        taps.record()
        net(IMAGES)
        gates, hidden = taps.take()
    assert not any(calls[0].requires_grad for calls in gates + [h for h in hidden if h])


@pytest.mark.parametrize(
    ("activation", "ends"),
    [
        ("sigmoid", (0, 1)),
        ("hard-sigmoid", (0, 1)),
        ("double-sigmoid", (0, 2)),
        ("tanh", (-1, 1)),
        ("relu", (0, 2)),
    ],
)
def test_the_range_is_that_of_the_gate_activation(activation, ends):
    assert Taps(se_resnet20(ratio=4, gate_activation=activation)).ends == ends


def test_new_taps_replace_earlier_ones():
    """An exception may have prevented the removal of the earlier taps."""
    net = se_resnet20(ratio=4).eval()
    first = Taps(net, hidden=True)
    first.record()
    taps, gates, hidden = recorded(net)
    assert [len(calls) for calls in gates + hidden] == [1] * 18
    assert taps.layers == first.layers
    assert not any(map(any, first.take()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    first.remove()  # harmless
