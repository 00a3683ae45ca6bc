import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning.excitation import Taps
from se_lightning.excitation.recording import excitations, record
from se_lightning.models import SqueezeExcitation, se_resnet20

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# Builder of each network, and the name of the gate in its SE modules.
NETS = {
    "se_lightning": (lambda: se_resnet20(ratio=4), "se.gate"),
    "se_lightning, spatial": (lambda: se_resnet20(ratio=4, gate="spatial"), "se.gate"),
    "se_lightning, without squeeze": (lambda: se_resnet20(ratio=4, squeeze="none"), "se.gate"),
    "timm's SEModule": (lambda: timm.create_model("seresnet18"), "se.gate"),
    "timm's SqueezeExcite": (lambda: timm.create_model("mobilenetv3_small_050"), "se.gate"),
    "torchvision": (torchvision.models.mobilenet_v3_small, "scale_activation"),
}


def state(net):
    return [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), *vars(module))
        for module in net.modules()
    ]


def by_hand(net, images, ending):
    """Return the gates averaged over space in float64, from separate hooks."""
    seen = {}
    for name, module in net.named_modules():
        if name.endswith(ending):
            module.register_forward_hook(
                lambda _, __, output, name=name: seen.update({name: output.double().numpy()})
            )
    with torch.no_grad():
        net.eval()(images)
    return {name.rpartition(".")[0]: gate.mean((2, 3)) for name, gate in seen.items()}


@pytest.mark.parametrize("name", NETS)
def test_gates_equal_those_of_separate_hooks_and_the_model_is_unchanged(name):
    build, ending = NETS[name]
    net = build().train()
    net.get_submodule(next(iter(dict(net.named_children())))).eval()  # as a frozen part
    before, weights = state(net), {k: v.clone() for k, v in net.state_dict().items()}
    gates = excitations(net, IMAGES)
    assert state(net) == before
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    expected = by_hand(net, IMAGES, ending)
    assert list(gates) == list(expected)
    for path, gate in gates.items():
        assert not gate.requires_grad
        np.testing.assert_allclose(gate.numpy(), expected[path], rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_gives_the_same_and_stays_compiled(whole):
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    net = se_resnet20(ratio=4).eval()
    expected = excitations(net, IMAGES)
    compiled = torch.compile(net, backend=backend) if whole else net
    if not whole:
        net.compile(backend=backend)
    with torch.no_grad():
        compiled(IMAGES)
        count = len(compilations)
        gates = excitations(compiled, IMAGES)
        compiled(IMAGES)
    assert count > 0
    assert len(compilations) == count
    assert list(gates) == list(expected)
    for path, gate in gates.items():
        torch.testing.assert_close(gate, expected[path])


def test_recording_taps_are_not_disturbed():
    net = se_resnet20(ratio=4).eval()
    with Taps(net) as taps:
        taps.record()
        net(IMAGES)
        excitations(net, IMAGES[:1])
        gates, _ = taps.take()
    assert [len(call) for call in gates[0]] == [3]


class Twice(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.fail = fail
        self.se = SqueezeExcitation(4, ratio=2)
        self.spare = SqueezeExcitation(4, ratio=2)

    def forward(self, x):
        once = self.se(x)
        if self.fail:
            raise RuntimeError("planted")
        return self.se(2 * once)


def test_several_calls_are_averaged_and_a_gate_that_is_not_executed_gives_a_warning():
    net, images = Twice(), IMAGES.repeat(1, 2, 1, 1)[:, :4]
    with torch.no_grad():
        inner = net.se(images)
        both = [
            net.se.gate(net.se.fc2(net.se.act(net.se.fc1(x.mean((2, 3), keepdim=True)))))
            for x in (images, 2 * inner)
        ]
    with pytest.warns(UserWarning, match="never executes them: spare"):
        gates = excitations(net, images)
    assert list(gates) == ["se"]
    torch.testing.assert_close(gates["se"], torch.stack(both).mean(0)[..., 0, 0])


def test_the_model_is_unchanged_after_an_error():
    net = Twice(fail=True).train()
    before = state(net)
    with pytest.raises(RuntimeError, match="planted"):
        excitations(net, IMAGES.repeat(1, 2, 1, 1)[:, :4])
    assert state(net) == before


def test_a_model_without_gates_is_refused():
    with pytest.raises(ValueError, match=r"\(=ResNet\) has no squeeze-and-excitation gates; "):
        excitations(torchvision.models.resnet18(), IMAGES)


def test_recording_yields_batch_by_batch_and_restores_the_mode():
    net = se_resnet20(ratio=4).train()
    batches = [(IMAGES[:2], torch.tensor([0, 1])), (IMAGES[2:], torch.tensor([2]))]
    expected = excitations(net, IMAGES)["layer1.0.se"]
    with Taps(net, hidden=True) as taps:
        found = list(record(net, batches, taps))
    assert net.training
    assert [each.labels.tolist() for each in found] == [[0, 1], [2]]
    gates = torch.cat([each.gates[0][0] for each in found])[..., 0, 0]
    torch.testing.assert_close(gates, expected)
    assert found[1].hidden[0][0].shape == (1, 4, 1, 1)


def test_there_is_no_warning_if_every_gate_is_executed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        excitations(se_resnet20(ratio=4), IMAGES)
