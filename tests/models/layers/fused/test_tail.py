"""The fused tail against one step after another, and against finite differences."""

import itertools
import random

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from se_lightning.models import SEResNet, SqueezeExcitation, create_model
from se_lightning.models.layers import gates, residual
from se_lightning.models.layers.fused import checks, cpu, fuses, rescaled
from se_lightning.models.layers.residual import tail
from se_lightning.tasks.timing import saved_bytes

FORMATS = (torch.contiguous_format, torch.channels_last)
ACTIVATIONS = ("sigmoid", "tanh", "relu", "hard-sigmoid", "double-sigmoid")


def stepwise(y, excite, *, norm=None, shortcut=None, relu=False):
    x = y if norm is None else norm(y)
    x = x * excite(x.mean((2, 3), keepdim=True))
    x = x if shortcut is None else x + shortcut
    return F.relu(x) if relu else x


def compiled(*args, **options):
    torch._dynamo.reset()
    return torch.compile(rescaled, backend="eager", fullgraph=True)(*args, **options)


class Parts:
    """A map, a gate, a norm and a shortcut with random numbers."""

    def __init__(
        self, shape, *, dtype=torch.float64, norm="train", shortcut=True, activation="sigmoid",
        form=torch.contiguous_format, seed=0,
    ):  # fmt: skip
        torch.manual_seed(seed)
        channels = shape[1]
        self.y = (0.5 + 2 * torch.randn(shape, dtype=dtype)).contiguous(memory_format=form)
        self.y.requires_grad_()
        self.shortcut = None
        if shortcut:
            self.shortcut = torch.randn(shape, dtype=dtype).contiguous(memory_format=form)
            self.shortcut.requires_grad_()
        self.gate = SqueezeExcitation(channels, 2, gate_activation=activation).to(dtype)
        for parameter in self.gate.parameters():
            nn.init.normal_(parameter)
        self.norm = None
        if norm:
            self.norm = nn.BatchNorm2d(channels)
            self.norm.to(torch.promote_types(dtype, torch.float32))
            for each in (self.norm.weight, self.norm.bias, self.norm.running_mean):
                nn.init.normal_(each)
            nn.init.uniform_(self.norm.running_var, 0.5, 2)
            self.norm.train(norm == "train")
        self.grad = torch.randn(shape, dtype=dtype)

    def run(self, function, **options):
        """Return the output, all gradients and the norm's statistics."""
        named = {"y": self.y, "shortcut": self.shortcut}
        named |= dict(self.gate.named_parameters())
        if self.norm is not None:
            named |= {f"norm.{name}": each for name, each in self.norm.named_parameters()}
        out = function(self.y, self.gate.excite, norm=self.norm, shortcut=self.shortcut, **options)
        wanted = {name: each for name, each in named.items() if each is not None}
        grads = torch.autograd.grad(out, list(wanted.values()), self.grad)
        buffers = {} if self.norm is None else dict(self.norm.named_buffers())
        return {"out": out.detach(), **dict(zip(wanted, grads, strict=True)), **buffers}


CASES = list(itertools.product(("train", "eval", None), (True, False), (True, False), FORMATS))


@pytest.mark.parametrize(("norm", "shortcut", "relu", "form"), CASES)
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (3, 8, 1, 1), (1, 4, 9, 2)])
def test_it_equals_one_step_after_another(shape, norm, shortcut, relu, form):
    options = {"norm": norm, "shortcut": shortcut, "form": form}
    found = Parts(shape, **options).run(rescaled, relu=relu)
    expected = Parts(shape, **options).run(stepwise, relu=relu)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("large", [1, 10**6])
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (3, 9, 4, 4)])
def test_the_shortcut_may_have_another_memory_format(shape, large, form, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", large)
    other = FORMATS[form is FORMATS[0]]
    results = []
    for function in (rescaled, stepwise):
        parts = Parts(shape, form=form)
        shortcut = parts.shortcut.detach().contiguous(memory_format=other)
        parts.shortcut = shortcut.requires_grad_()
        results.append(parts.run(function, relu=True))
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_equals_one_step_after_another_with_each_activation(activation):
    found, expected = (
        Parts((3, 6, 4, 5), activation=activation).run(function, relu=True)
        for function in (rescaled, stepwise)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_random_shapes(monkeypatch):
    generator = random.Random(0)
    for seed in range(200):
        shape = tuple(generator.randint(1, high) for high in (9, 20, 12, 12))
        monkeypatch.setattr(cpu, "LARGE", generator.choice([1, 50, 10_000]))
        options = {
            "norm": generator.choice(["eval", None] if shape[0] * shape[2] * shape[3] == 1
                                     else ["train", "eval", None]),
            "shortcut": generator.random() < 0.5,
            "form": generator.choice(FORMATS),
            "activation": generator.choice(ACTIVATIONS),
            "seed": seed,
        }  # fmt: skip
        relu = generator.random() < 0.5
        found, expected = (
            Parts(shape, **options).run(function, relu=relu) for function in (rescaled, stepwise)
        )
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-6, atol=1e-8, msg=f"{name}, {shape}, {options}"
            )


@pytest.mark.parametrize("norm", ["train", "eval", None])
@pytest.mark.parametrize("shortcut", [True, False])
def test_first_and_second_derivatives_match_finite_differences(norm, shortcut):
    parts = Parts((2, 3, 2, 3), norm=norm, shortcut=shortcut)
    parts.norm = None if parts.norm is None else parts.norm.double()
    weights = [] if norm is None else [parts.norm.weight, parts.norm.bias]

    def call(y, *more):
        return rescaled(
            y, parts.gate.excite, norm=parts.norm, shortcut=more[0] if shortcut else None
        )

    inputs = [parts.y, *([parts.shortcut] if shortcut else []), *weights]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("norm", ["train", "eval", None])
@pytest.mark.parametrize("function", [rescaled, compiled])
@pytest.mark.parametrize("shape", [(8, 16, 12, 12), (2, 16, 65, 64)])
def test_half_precision_is_as_exact_as_one_step_after_another(norm, function, shape):
    options = {"norm": norm, "dtype": torch.bfloat16}
    found, expected = (
        Parts(shape, **options).run(each, relu=True) for each in (function, stepwise)
    )
    parts = Parts(shape, **options)
    parts.y = parts.y.detach().double().requires_grad_()
    parts.shortcut = parts.shortcut.detach().double().requires_grad_()
    parts.gate.double()
    parts.grad = parts.grad.double()
    parts.norm = None if parts.norm is None else parts.norm.double()
    exact = parts.run(stepwise, relu=True)
    for name, value in exact.items():
        if name == "num_batches_tracked":
            continue
        errors = [(each[name].double() - value).norm() / value.norm() for each in (found, expected)]
        assert found[name].dtype == expected[name].dtype
        assert errors[0] <= 2 * errors[1] + 1e-6, (name, errors)


def test_a_large_mean_costs_hardly_more_precision_than_one_step_after_another():
    """Sums of products cancel if the mean is far above the deviation, here 50 times as large."""
    runs = []
    for function, dtype in ((rescaled, None), (stepwise, None), (stepwise, torch.float64)):
        parts = Parts((8, 16, 12, 12), dtype=torch.float32)
        parts.y = (parts.y.detach() + 100).to(dtype).requires_grad_()
        parts.shortcut = parts.shortcut.detach().to(dtype).requires_grad_()
        parts.grad = parts.grad.to(dtype)
        for module in (parts.gate, parts.norm):
            module.to(dtype)
        runs.append(parts.run(function, relu=True))
    exact = runs[-1]
    for name in ("out", "y", "norm.weight", "norm.bias", "fc1.weight", "running_var"):
        errors = [(run[name] - exact[name]).norm() / exact[name].norm() for run in runs[:2]]
        # One rounding of a number 50 times as large as the result is 50 * 2**-24 = 3e-6.
        assert errors[0] <= 4 * errors[1] + 1e-5, (name, errors)


@pytest.mark.parametrize("norm", ["train", "eval", None])
def test_the_formulas_for_the_compiler(norm):
    found, expected = (
        Parts((4, 6, 5, 7), norm=norm).run(function, relu=True) for function in (compiled, stepwise)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)


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


def test_a_graph_is_used_twice_and_in_parts():
    """The backward passes leave nothing for each other."""
    parts = Parts((2, 4, 3, 3))
    out = rescaled(parts.y, parts.gate.excite, norm=parts.norm, shortcut=parts.shortcut, relu=True)
    weights = list(parts.gate.parameters())
    first = torch.autograd.grad(out, parts.y, parts.grad, retain_graph=True)
    torch.autograd.grad(out, weights, parts.grad, retain_graph=True)
    doubled = torch.autograd.grad(out, parts.y, 2 * parts.grad, create_graph=True)
    torch.testing.assert_close(doubled[0], 2 * first[0])


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
    *({"gate_activation": activation} for activation in ACTIVATIONS),
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
