import math

import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning.excitation.folding.fold import fold_gates
from se_lightning.models import (
    ConcurrentExcitation,
    SqueezeExcitation,
    add_excitation,
    create_model,
    find_excitations,
    remove_excitation,
)
from se_lightning.models.surgery.folded import ChannelScale, folded, repeat_folds


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x):
        return x * 0 + self.value.view(-1, 1, 1)


def stuck(model, sign=False):
    """Make every gate a different constant, and give every norm nontrivial statistics."""
    generator = torch.Generator().manual_seed(0)

    def draw(size):
        return torch.rand(size, generator=generator) + 0.3

    for parts in find_excitations(model).values():
        name = next(n for n, child in parts.module.named_children() if child is parts.gate)
        value = draw(parts.channels)
        if sign:
            value *= torch.randn(parts.channels, generator=generator).sign()
        setattr(parts.module, name, Constant(value))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var, module.running_mean, module.bias):
                tensor.detach().copy_(draw(len(tensor)))
    return model.eval()


@torch.no_grad()
def check(model, size=32, **options):
    torch.manual_seed(0)
    images = torch.randn(2, 3, size, size)
    stuck(model, **options)
    before = model(images)
    report = fold_gates(model, [images], 1e-6)
    torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-5 * before.abs().max())
    assert not any(module._forward_pre_hooks for module in model.modules())
    return [gate.action for gate in report.gates], report


PLACEMENTS = {"standard": 0, "pre": 0, "post": 6, "identity": 7}


@pytest.mark.parametrize(("placement", "scales"), PLACEMENTS.items())
@pytest.mark.parametrize("name", ["se_resnet20", "se_preact_resnet20"])
@pytest.mark.parametrize("sign", [False, True])
def test_outputs_are_unchanged_in_every_placement(name, placement, scales, sign):
    model = create_model(name, num_classes=10, in_channels=3, placement=placement, ratio=4)
    actions, _ = check(model, sign=sign)
    # No layer can absorb a constant on a sum that later blocks read too, or a negative one before
    # a ReLU.
    if not sign:
        assert actions.count("scale") == scales
    assert "kept" not in actions


@pytest.mark.parametrize("name", ["se_resnet50", "se_preact_resnet50"])
def test_inner_gates_are_folded(name):
    model = create_model(name, num_classes=5, in_channels=3, placement="inner")
    actions, _ = check(model)
    assert set(actions) == {"identity"}


@pytest.mark.parametrize(
    ("name", "size", "sign"),
    [
        ("se_densenet40_12", 32, False),
        ("se_densenet40_12", 32, True),
        ("se_bn_inception", 32, False),
        ("se_mobilenet", 32, False),
        ("se_shufflenet", 32, False),
        ("se_vgg16_bn", 32, False),
        ("se_vgg16_bn", 32, True),
        ("se_nested", 32, False),
        ("se_simple", 32, False),
    ],
)
def test_outputs_of_other_families_are_unchanged(name, size, sign):
    model = create_model(name, num_classes=10, in_channels=3)
    size = getattr(model, "image_size", None) or size
    actions, _ = check(model, size, sign=sign)
    assert "kept" not in actions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("se_inception_v3", 96),
        ("se_inception_resnet_v2", 96),
        ("senet154", 64),
        ("se_densenet121", 64),
        ("se_resnext50_32x4d", 64),
        ("se_wrn16_8", 32),
        ("se_shake_shake26_2x96d", 32),
    ],
)
def test_outputs_of_large_families_are_unchanged(name, size):
    actions, _ = check(create_model(name, num_classes=10, in_channels=3), size)
    assert "kept" not in actions


def test_outputs_of_timms_and_torchvisions_networks_are_unchanged():
    for model in (
        timm.create_model("seresnet18", num_classes=5),
        torchvision.models.mobilenet_v3_small(num_classes=5),
    ):
        actions, _ = check(model, 64)
        assert set(actions) == {"identity"}
    actions, _ = check(timm.create_model("rexnet_100", num_classes=5), 64)  # cannot be traced
    assert set(actions) == {"scale"}


@pytest.mark.parametrize("where", ["residual", "stages"])
def test_inserted_gates_are_folded_and_can_still_be_removed(where):
    model = add_excitation(torchvision.models.resnet18(num_classes=5), where)
    keys = set(torchvision.models.resnet18(num_classes=5).state_dict())
    actions, _ = check(model, 64)
    assert set(actions) == {"identity"}
    assert set(remove_excitation(model).state_dict()) == keys


def test_a_scale_that_replaces_an_inserted_gate_is_executed():
    model = add_excitation(timm.create_model("convnext_atto", num_classes=5), "stages")
    actions, _ = check(model, 64)
    assert set(actions) == {"scale"}


def test_a_gate_of_1_is_removed_without_changing_the_weights():
    torch.manual_seed(0)
    options = {"num_classes": 3, "in_channels": 3, "ratio": 4}
    model = create_model("se_resnet20", gate_activation="double-sigmoid", **options)
    there = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = fold_gates(model.eval(), [torch.randn(4, 3, 32, 32)])
    assert report.folded == {f"layer{i}.{j}.se": "identity" for i in (1, 2, 3) for j in (0, 1, 2)}
    assert all(torch.equal(there[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(".se." in key for key in model.state_dict())
    assert type(model.layer1[0].se) is nn.Identity


def test_the_constant_is_folded_into_the_reported_layer():
    torch.manual_seed(0)
    model = stuck(create_model("se_resnet20", num_classes=3, in_channels=3, ratio=4))
    value, norm = model.layer1[0].se.gate.value.clone(), model.layer1[0].bn2
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    report = fold_gates(model, [torch.randn(4, 3, 32, 32)])
    first = report.gates[0]
    assert first.into == ("layer1.0.bn2",)
    assert (first.low, first.high) == pytest.approx((value.min().item(), value.max().item()))
    torch.testing.assert_close(norm.weight.detach(), weight * value)
    torch.testing.assert_close(norm.bias.detach(), bias * value)


def test_only_gates_within_the_tolerance_are_folded():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), SqueezeExcitation(4, 1), nn.Conv2d(4, 4, 3), SqueezeExcitation(4, 1)
    ).eval()
    images = torch.randn(50, 3, 8, 8)
    gates = {}
    for index in (1, 3):
        net[index].gate.register_forward_hook(lambda m, i, o, k=index: gates.update({k: o}))
    with torch.no_grad():
        net(images)
    spread = {k: float((g.double() - g.double().mean(0)).abs().max()) for k, g in gates.items()}
    near, far = sorted(spread, key=spread.get)
    tolerance = (spread[near] + spread[far]) / 2
    before = fold_gates(net, images.split(20), 1e-6)
    assert (before.folded, before.nearest.layer) == ({}, str(near))
    assert {g.layer: g.spread for g in before.gates} == {
        str(k): pytest.approx(s, rel=1e-6) for k, s in spread.items()
    }
    assert set(fold_gates(net, images.split(20), tolerance).folded) == {str(near)}


def test_layers_that_are_read_elsewhere_or_run_twice_absorb_no_constant():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.se = nn.Conv2d(3, 3, 1), SqueezeExcitation(3, 1)

        def forward(self, x):
            x = self.conv(x)
            return x + self.se(x)

    class Twice(Reads):
        def forward(self, x):
            return self.se(self.conv(self.conv(x)))

    for kind in (Reads, Twice):
        actions, report = check(kind(), 8)
        assert actions == ["scale"]
        assert "no adjacent layer" in report.gates[0].reason


def test_grouped_convolutions_and_linear_layers_absorb_constants():
    for tail in (
        [nn.Conv2d(8, 6, 3, groups=2)],
        [nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)],
        [nn.AvgPool2d(2), nn.BatchNorm2d(8)],
    ):
        # A SiLU does not commute with a scale, so that the layers before it cannot absorb one.
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), SqueezeExcitation(8, 2), *tail)
        actions, report = check(net, 8)
        assert actions == ["identity"]
        assert report.gates[0].into == (str(len(net) - 1),)


def test_training_continues_from_the_same_function_after_folding_into_a_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), SqueezeExcitation(4, 2), nn.BatchNorm2d(4))
    stuck(net)
    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        net[2].gate.value *= 2
        fold_gates(net, [images])
        scaled = net.train()(images)
    norm = nn.functional.batch_norm(net[1](net[0](images)), None, None, training=True)
    weight, bias = (p.detach().view(-1, 1, 1) for p in (net[3].weight, net[3].bias))
    torch.testing.assert_close(scaled, norm.detach() * weight + bias, rtol=1e-3, atol=1e-4)


def test_merged_unused_and_nan_gates_are_kept_and_reported():
    actions, report = check(nn.Sequential(nn.Conv2d(3, 4, 1), ConcurrentExcitation(4, 2)), 8)
    assert actions == ["kept", "kept"]
    assert "merged with another gate" in report.gates[0].reason

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = SqueezeExcitation(3, 1), SqueezeExcitation(3, 1)
            nn.init.constant_(self.used.fc2.bias, math.nan)

        def forward(self, x):
            return self.used(x)

    report = fold_gates(Idle().eval(), [torch.randn(2, 3, 4, 4)])
    assert [gate.reason for gate in report.gates] == ["kept: never executed, or NaN"] * 2
    assert report.nearest is None


def test_a_constant_spatial_gate_is_folded():
    actions, _ = check(create_model("se_resnet20", num_classes=3, in_channels=3, gate="spatial"))
    assert set(actions) == {"identity"}


def test_another_network_repeats_the_folds_and_loads_the_weights():
    def fresh():
        return create_model("se_resnet20", num_classes=3, in_channels=3, placement="post", ratio=4)

    model = fresh()
    check(model)
    folds = folded(model)
    assert set(folds.values()) == {"identity", "scale"}
    other = fresh().eval()
    repeat_folds(other, folds)
    repeat_folds(other, folds)  # idempotent
    other.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(other(images), model(images))
    assert isinstance(other.layer1[0].se, ChannelScale)
    with pytest.raises(ValueError, match=r"`layer9\.se` is a folded gate in the checkpoint"):
        repeat_folds(other, {"layer9.se": "scale"})


def test_invalid_arguments_are_refused():
    net = nn.Sequential(SqueezeExcitation(3, 1))
    with pytest.raises(ValueError, match=r"`tolerance` \(=-1\)"):
        fold_gates(net, [torch.zeros(1, 3, 2, 2)], -1)
    with pytest.raises(ValueError, match="`batches` must contain at least one image"):
        fold_gates(net, [])
