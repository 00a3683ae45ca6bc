import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from se_lightning.models import se_resnet20
from se_lightning.modules.optim import cosine, multi_step, parameter_groups


def rates(schedule, steps, **options):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=steps, steps_per_epoch=10, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_with_warm_up_worked_by_hand():
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


def test_a_warm_up_longer_than_the_run_is_cut_and_told():
    with pytest.warns(UserWarning, match="warm-up of 5 epochs is cut to half of this run's 20"):
        found = rates(cosine, 20, warmup_epochs=5)
    assert found.index(max(found)) in (9, 10)


def test_a_drop_beyond_the_end_is_told():
    with pytest.warns(UserWarning, match="after 8 epochs, lies beyond the end of this run of 2"):
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


def test_cosine_needs_an_end():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        cosine(optimizer, total_steps=math.inf, steps_per_epoch=10)


def test_only_weights_decay_and_the_gates_weights_do():
    model = se_resnet20(ratio=4)
    decayed, undecayed = parameter_groups(model)
    assert "weight_decay" not in decayed
    assert undecayed["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in decayed["params"]}
    assert "layer1.0.se.fc1.weight" in found
    norms = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected = {name for name in names.values() if name.endswith("weight")} - norms
    assert found == expected
    assert len(found) + len(undecayed["params"]) == len(names)
