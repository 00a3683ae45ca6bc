"""The fused tail against one step after another, and against finite differences."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from se_lightning.models import SqueezeExcitation
from se_lightning.models.layers.fused import cpu, rescaled

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


def test_a_graph_is_used_twice_and_in_parts():
    """The backward passes leave nothing for each other."""
    parts = Parts((2, 4, 3, 3))
    out = rescaled(parts.y, parts.gate.excite, norm=parts.norm, shortcut=parts.shortcut, relu=True)
    weights = list(parts.gate.parameters())
    first = torch.autograd.grad(out, parts.y, parts.grad, retain_graph=True)
    torch.autograd.grad(out, weights, parts.grad, retain_graph=True)
    doubled = torch.autograd.grad(out, parts.y, 2 * parts.grad, create_graph=True)
    torch.testing.assert_close(doubled[0], 2 * first[0])
