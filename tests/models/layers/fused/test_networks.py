"""Training steps of whole networks, fused and one step after another."""

import pytest
import timm
import torch

from se_lightning.models import SEResNet, create_model
from se_lightning.models.layers import gates, residual
from se_lightning.models.layers.fused import checks
from se_lightning.tasks.timing import saved_bytes


def test_saved_tensors_of_a_network_are_fewer_than_timms(monkeypatch):
    """The normalized and the scaled map are not stored: issue 18 asks for 0.90."""
    monkeypatch.setattr(checks, "SMALL", 0)
    images = torch.randn(2, 3, 64, 64)
    ours, theirs = (
        saved_bytes(network, lambda network=network: network(images))
        for network in (create_model("se_resnet50"), timm.create_model("seresnet50"))
    )
    assert ours <= 0.90 * theirs


def gradients(network, images):
    """Return output, gradients and running statistics of a training step."""
    torch.manual_seed(0)  # dropout
    network.zero_grad()
    output = network.train()(images)
    outputs = output if isinstance(output, tuple) else (output,)
    sum(each.sin().sum() for each in outputs).backward()
    found = {name: each.grad for name, each in network.named_parameters()}
    buffers = {name: each.clone() for name, each in network.named_buffers()}
    return {"output": outputs[0].detach(), **found, **buffers}


def assert_steps_agree(network, images, monkeypatch):
    """Assert that a step is the same fused and step by step; return how many gates are fused."""
    state = {name: each.clone() for name, each in network.state_dict().items()}
    calls = []
    for module in (residual, gates):
        function = module.rescaled
        monkeypatch.setattr(
            module, "rescaled", lambda *a, f=function, **k: calls.append(1) or f(*a, **k)
        )
    results = []
    for small in (0, 2**62):
        monkeypatch.setattr(checks, "SMALL", small)
        network.load_state_dict(state)
        results.append(gradients(network, images))
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=1e-6, atol=1e-8, msg=name)
    return len(calls)


PLACEMENTS = ("standard", "pre", "post", "identity", "inner")
GATES = [
    *({"gate_activation": activation} for activation in gates.ACTIVATIONS),
    *({"squeeze": squeeze} for squeeze in ("max", "avgmax", "none")),
    {"gate": "spatial"},
    *({"gate": "concurrent", "merge": merge} for merge in ("sum", "max", "product")),
]


@pytest.mark.parametrize("options", GATES, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_gate_at_every_placement(monkeypatch, options, bottleneck):
    """With a stride, a projection and odd sizes."""
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        network = SEResNet(
            depth=[1, 1], widths=[4, 8], stem="cifar", bottleneck=bottleneck, num_classes=3,
            ratio=2, placement=placement, **options,
        ).double()  # fmt: skip
        for parameter in network.parameters():  # no zeros, as of a double sigmoid's last layer
            parameter.data += 0.1 * torch.randn_like(parameter)
        images = torch.randn(3, 3, 7, 9, dtype=torch.float64)
        count = assert_steps_agree(network, images, monkeypatch)
        known = options.get("gate", "channel") != "spatial" and "squeeze" not in options
        assert count == (2 if known else 0), placement


FAMILIES = (
    "se_resnet18", "se_resnext50_32x4d", "se_preact_resnet20", "se_wrn16_8", "se_mobilenet",
    "se_shufflenet", "se_densenet40_12", "se_simple", "se_nested",
    "se_vgg16_bn", "se_bn_inception", "se_shake_shake26_2x96d",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_each_family(monkeypatch, name):
    torch.manual_seed(0)
    network = create_model(name, num_classes=3, ratio=2).double()
    side = min(network.native_size, max(32, network.native_size // 4))
    images = torch.randn(2, network.in_channels, side, side, dtype=torch.float64)
    assert assert_steps_agree(network, images, monkeypatch) > 0


def test_checkpointed_gradients_count_a_batch_once(monkeypatch):
    torch.manual_seed(0)
    network = SEResNet(depth=[2, 1], widths=[4, 8], stem="cifar", num_classes=3, ratio=2).double()
    images = torch.randn(3, 3, 7, 9, dtype=torch.float64)
    monkeypatch.setattr(checks, "SMALL", 0)
    state = {name: each.clone() for name, each in network.state_dict().items()}
    expected = gradients(network, images)
    network.load_state_dict(state)
    network.set_grad_checkpointing()
    for name, value in gradients(network, images).items():
        torch.testing.assert_close(value, expected[name], msg=name)
