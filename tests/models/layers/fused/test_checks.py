"""When a tail is fused, and when its steps are taken one by one."""

import pytest
import torch
from torch import nn

from se_lightning.models import SqueezeExcitation
from se_lightning.models.layers import gates, residual
from se_lightning.models.layers.fused import checks, fuses, rescaled
from se_lightning.models.layers.residual import tail


class Unit(nn.Module):
    """Norm, gate, shortcut and ReLU by the tail of residual units."""

    def __init__(self, channels=6):
        super().__init__()
        self.norm, self.se = nn.BatchNorm2d(channels), SqueezeExcitation(channels, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, shortcut):
        return tail(x, norm=self.norm, se=self.se, shortcut=shortcut, act=self.act)


@pytest.fixture
def fused_calls(monkeypatch):
    """Return a list to which each fused tail adds whether it includes a norm and a ReLU."""
    calls = []

    def spy(y, excite, *, norm=None, shortcut=None, relu=False):
        calls.append((norm is not None, shortcut is not None, relu))
        return rescaled(y, excite, norm=norm, shortcut=shortcut, relu=relu)

    monkeypatch.setattr(checks, "SMALL", 0)
    for module in (residual, gates):
        monkeypatch.setattr(module, "rescaled", spy)
    return calls


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_unit_is_fused(fused_calls, mode):
    with mode():
        Unit()(torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4))
    assert fused_calls == [(True, True, True)]


@pytest.mark.parametrize(
    ("hooked", "calls"),
    [
        ("norm", [(False, True, True)]),
        ("act", [(True, True, False)]),
        ("se", []),
        ("se.gate", [(True, True, True)]),
        ("se.fc2", [(True, True, True)]),
    ],
)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_sees_what_it_would_see_otherwise(fused_calls, monkeypatch, hooked, calls, kind):
    def run(fuse):
        torch.manual_seed(0)
        unit, seen = Unit().double(), []
        monkeypatch.setattr(residual, "fuses", fuses if fuse else lambda x, gate: False)
        monkeypatch.setattr(gates, "fuses", fuses if fuse else lambda x, gate: False)

        def hook(module, *values):
            # Copied, as the next step may be in place.
            seen.extend(
                v.clone() for each in values for v in (each if type(each) is tuple else [each])
            )

        if kind.startswith("full") and hooked == "act":
            unit.act.inplace = False  # torch refuses backward hooks on steps in place
        getattr(unit.get_submodule(hooked), f"register_{kind}_hook")(hook)
        x, shortcut = torch.randn(2, 2, 6, 4, 4, dtype=torch.float64).requires_grad_().unbind()
        unit(x, shortcut).sin().sum().backward()
        return seen

    found, expected = run(True), run(False)
    assert fused_calls == calls
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_steps_that_do_not_fit_are_taken_one_by_one(fused_calls):
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    unit = Unit().eval()
    gated = unit.se(unit.norm(x))
    fused_calls.clear()
    for shortcut, act, norm in (
        (y.double(), unit.act, unit.norm),
        (y[:1], unit.act, unit.norm),
        (y, nn.ReLU6(), unit.norm),
        (y, unit.act, nn.Sequential(unit.norm)),
    ):
        found = tail(x, norm=norm, se=unit.se, shortcut=shortcut, act=act)
        torch.testing.assert_close(found, act(gated + shortcut))
    assert fused_calls == [
        (True, False, False), (True, False, False), (True, True, False), (False, True, True)
    ]  # fmt: skip


def test_one_value_per_channel_is_refused_as_by_batch_norm():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        Unit()(torch.randn(1, 6, 1, 1), None)


# torch.func.jvp scripts its decompositions.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_vmap_and_forward_mode_see_single_steps(fused_calls):
    gate = SqueezeExcitation(4, 2)
    x = torch.randn(3, 2, 4, 3, 3)
    found = torch.vmap(gate)(x)
    torch.testing.assert_close(found, torch.stack([gate(each) for each in x]))
    assert len(fused_calls) == 3
    _, change = torch.func.jvp(gate, (x[0],), (torch.ones_like(x[0]),))
    near = (gate(x[0] + 1e-3) - gate(x[0] - 1e-3)) / 2e-3
    torch.testing.assert_close(change, near, rtol=1e-2, atol=1e-3)


def test_small_maps_are_not_fused(fused_calls, monkeypatch):
    monkeypatch.setattr(checks, "SMALL", 3 * 6 * 8 * 8)
    for images in (3, 4):
        Unit()(torch.randn(images, 6, 8, 8), None)
    assert len(fused_calls) == 1
