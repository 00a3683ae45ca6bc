import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import SGD

from se_lightning.models import create_model, se_resnet20
from se_lightning.modules.optim import cosine, multi_step, parameter_groups, scale_rates


def rates(schedule, steps, **options):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=steps, steps_per_epoch=10, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_with_warm_up_matches_a_hand_calculation():
    found = rates(cosine, 100, warmup_epochs=2, min_factor=0.1)
    ramp = [(step + 1) / 20 for step in range(20)]
    curve = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 80)) for step in range(80)]
    assert found == pytest.approx(ramp + curve)


def test_cosine_equals_torchs_without_warm_up():
    found = rates(cosine, 50)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    assert found == pytest.approx(expected)


def test_multi_step_drops_at_its_epochs():
    found = rates(multi_step, 60, milestones=[2, 4.5], gamma=0.1, warmup_epochs=0.5)
    expected = [0.2, 0.4, 0.6, 0.8] + [1.0] * 16 + [0.1] * 25 + [0.01] * 15
    assert found == pytest.approx(expected)


def test_a_warm_up_longer_than_the_run_is_shortened_with_a_warning():
    with pytest.warns(UserWarning, match="5 epochs is shortened to half of this run's 20"):
        found = rates(cosine, 20, warmup_epochs=5)
    assert found.index(max(found)) in (9, 10)


def test_a_drop_beyond_the_end_causes_a_warning():
    with pytest.warns(UserWarning, match="after 8 epochs, is beyond the end of this run of 2"):
        assert rates(multi_step, 20, milestones=[1, 8]) == pytest.approx([1.0] * 10 + [0.1] * 10)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (cosine, {"warmup_epochs": -1}, "`warmup_epochs`"),
        (multi_step, {"milestones": [3, 2]}, "`milestones`"),
        (multi_step, {"milestones": [0]}, "`milestones`"),
    ],
)
def test_a_wrong_schedule_is_refused_by_name(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        rates(schedule, 50, **options)


def test_cosine_needs_a_finite_run():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        cosine(optimizer, total_steps=math.inf, steps_per_epoch=10)


def test_only_weights_decay_including_those_of_gates():
    model = se_resnet20(ratio=4)
    decayed, undecayed = parameter_groups(model, decay_norm_bias=False)
    assert "weight_decay" not in decayed
    assert undecayed["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in decayed["params"]}
    assert "layer1.0.se.fc1.weight" in found
    norms = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected = {name for name in names.values() if name.endswith("weight")} - norms
    assert found == expected
    assert len(found) + len(undecayed["params"]) == len(names)


def scales(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: (group["lr_scale"], group.get("weight_decay") == 0)
        for group in groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_layer_decay_equals_timms(name):
    oracle = timm.create_model(f"se{name}")
    model = create_model(f"se_{name}", divisor=8)
    expected = param_groups_layer_decay(oracle, weight_decay=0.1, layer_decay=0.75)
    found = scales(model, parameter_groups(model, decay_norm_bias=False, layer_decay=0.75))
    assert found == scales(oracle, expected)
    assert found["conv1.weight"][0] == 0.75 ** (17 if name == "resnet50" else 9)


@pytest.mark.parametrize(
    "name", ["se_densenet121", "se_mobilenet", "se_vgg16_bn", "se_inception_v3"]
)
def test_layer_decay_rises_to_the_classifier_and_covers_every_parameter_once(name):
    with torch.device("meta"):
        model = create_model(name)
    groups = parameter_groups(model, layer_decay=0.9)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters()]
    rising = [group["lr_scale"] for group in groups]
    assert rising == sorted(rising)
    assert rising[-1] == 1
    assert any(parameters[-1] is p for p in groups[-1]["params"])


def test_each_layers_rate_follows_the_schedule(tmp_path):
    model = create_model("se_resnet20", ratio=4)
    optimizer = SGD(parameter_groups(model, layer_decay=0.5), lr=0.2)
    scale_rates(optimizer)
    scheduler = cosine(optimizer, total_steps=10, steps_per_epoch=5)
    depth = len(optimizer.param_groups)
    assert depth == 11
    for step in range(10):
        factor = 0.5 * (1 + math.cos(math.pi * step / 10))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.2 * 0.5 ** (depth - 1 - n) * factor for n in range(depth)])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_wrong_layer_decay_is_refused(value):
    with pytest.raises(ValueError, match="`layer_decay`"):
        parameter_groups(nn.Linear(2, 2), layer_decay=value)


def test_frozen_parameters_are_in_no_group():
    model = create_model("se_resnet20", ratio=4)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    for options in ({}, {"decay_norm_bias": False}, {"layer_decay": 0.5}):
        groups = parameter_groups(model, **options)
        assert sum(len(group["params"]) for group in groups) == 2
