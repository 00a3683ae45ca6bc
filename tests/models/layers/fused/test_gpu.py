"""The kernels against plain torch in float64, on a GPU or in Triton's interpreter."""

import os
import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.library import opcheck

from se_lightning.models import SqueezeExcitation
from se_lightning.models.layers.fused import gpu, tail

if not gpu.AVAILABLE:
    pytest.skip("needs Triton", allow_module_level=True)

from se_lightning.models.layers.fused import operators, triton_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = (lambda test: test) if INTERPRETED else pytest.mark.gpu
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.fixture(autouse=True)
def _poisoned():
    """Fill new memory with NaN, so that elements that no kernel writes are found."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def _small_tiles(monkeypatch):
    """Let a small map have many tiles and parts."""
    monkeypatch.setattr(operators, "TILE", 2048)
    monkeypatch.setattr(operators, "ROW", {True: 32, False: 128})
    monkeypatch.setattr(operators, "PROGRAMS", 8)
    monkeypatch.setattr(operators, "TILES", 1)


@pytest.mark.skipif(INTERPRETED, reason="runs in the outer process")
@pytest.mark.parametrize(
    "chosen", ["fused_tail", pytest.param("not fused_tail", marks=pytest.mark.slow)]
)
def test_the_tests_of_this_file_pass_in_tritons_interpreter(chosen):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-k", chosen], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout


def normal(shape, dtype=torch.float32, form=FIRST, scale=1.0, mean=0.0):
    values = mean + scale * torch.randn(shape, dtype=torch.float64)
    return values.to(DEVICE, dtype).contiguous(memory_format=form)


class Case:
    """A random map with random partners."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        choice = random.Random(seed)
        self.shape = tuple(choice.randint(1, high) for high in (3, 12, 6, 6))
        self.dtype = choice.choice(TYPES)
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.y = self.layout(choice, scale=2, mean=0.5)
        self.second = self.layout(choice)
        self.third = self.layout(choice).relu()
        self.rows = [normal((*self.shape[:2], 1, 1), self.wide) for _ in range(2)]
        self.channels = normal(self.shape[1], self.wide)
        if choice.random() < 0.5:
            self.channels = self.channels.view(-1, 1, 1)
        self.flags = [choice.random() < 0.5 for _ in range(3)]

    def layout(self, choice, **options):
        n, c, h, w = self.shape
        kind = choice.choice(["last", "first", "sliced", "expanded"])
        if kind == "sliced":
            form = choice.choice([LAST, FIRST])
            return normal((n, c, 2 * h, w), self.dtype, form, **options)[:, :, ::2]
        if kind == "expanded":
            return normal((n, c, 1, 1), self.dtype, **options).expand(self.shape)
        return normal(self.shape, self.dtype, LAST if kind == "last" else FIRST, **options)

    def check_sum(self, found, terms, more=0.0):
        """Compare a sum over space, whose error is a share of the terms' size, and more."""
        assert found.dtype == self.wide
        assert found.shape == (*self.shape[:2], 1, 1)
        error = (found.double() - terms.sum((2, 3), keepdim=True)).abs()
        size = terms.abs().sum((2, 3), keepdim=True)
        assert (error <= size * 20 * torch.finfo(self.wide).eps + more).all(), self.shape

    def check_map(self, found, exact, terms):
        """Compare a map, whose error is one rounding, and those of its terms before."""
        assert found.dtype == self.dtype
        assert found.shape == self.shape
        assert found.is_contiguous() or found.is_contiguous(memory_format=LAST)
        for form in (FIRST, LAST):
            fits = found.is_contiguous(memory_format=form)
            assert fits or not self.y.is_contiguous(memory_format=form)
        error = (found.double() - exact).abs()
        rounding = torch.finfo(self.dtype).eps / 2 * exact.abs()
        if INTERPRETED and self.dtype == torch.bfloat16:
            rounding *= 2  # the interpreter cuts off what a GPU rounds
        size = sum(term.abs() for term in terms)
        assert (error <= rounding + 4 * torch.finfo(self.wide).eps * size).all(), self.shape


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
def test_moments_of_50_random_maps():
    for seed in range(50):
        case = Case(seed)
        mean, m2 = gpu.moments(case.y)
        y, pixels = case.y.double(), case.shape[2] * case.shape[3]
        case.check_sum(mean, y / pixels)
        deviation = y - y.mean((2, 3), keepdim=True)
        # All that the deviations of a constant map consist of is rounding of the mean.
        rounding = pixels * (4 * torch.finfo(case.wide).eps * y.abs().amax()).square()
        case.check_sum(m2, deviation.square(), rounding)


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
def test_rescaling_50_random_maps():
    for seed in range(50):
        case = Case(seed)
        offset = case.rows[1] if case.flags[0] else None
        shortcut = case.second if case.flags[1] else None
        found = gpu.rescale(case.y, case.rows[0], offset, shortcut, relu=case.flags[2])
        terms = [case.y.double() * case.rows[0].double()]
        terms += [each.double() for each in (offset, shortcut) if each is not None]
        exact = sum(terms)
        case.check_map(found, exact.relu() if case.flags[2] else exact, terms)


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
def test_gradient_sums_of_50_random_maps():
    for seed in range(50):
        case = Case(seed)
        grad, out = case.second, case.third if case.flags[0] else None
        center = case.channels if case.flags[1] else None
        masked, total, product = gpu.gradient_sums(grad, out, case.y, center)
        exact = grad if out is None else grad * (out > 0)
        assert torch.equal(masked, exact)
        assert masked.is_contiguous() or masked.is_contiguous(memory_format=LAST)
        case.check_sum(total, exact.double())
        shift = 0 if center is None else center.double().view(-1, 1, 1)
        case.check_sum(product, exact.double() * (case.y.double() - shift))


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
def test_combining_50_random_maps():
    for seed in range(50):
        case = Case(seed)
        slope, second = (case.channels, case.second) if case.flags[0] else (None, None)
        found = gpu.combine(case.y, *case.rows, slope, second)
        terms = [case.y.double() * case.rows[0].double(), case.rows[1].double()]
        if slope is not None:
            terms.append(second.double() * slope.double().view(-1, 1, 1))
        case.check_map(found, sum(terms), terms)


@runs_kernels
@pytest.mark.parametrize("form", [FIRST, LAST])
@pytest.mark.parametrize("shape", [(2, 70, 12, 13), (1, 3, 64, 65), (1, 300, 1, 1)])
def test_maps_of_several_tiles(shape, form):
    y, factor = normal(shape, form=form), normal((*shape[:2], 1, 1))
    mean, m2 = gpu.moments(y)
    variance, exact = torch.var_mean(y.double(), (2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(mean, exact.float())
    torch.testing.assert_close(m2, (variance * shape[2] * shape[3]).float())
    _, total, product = gpu.gradient_sums(y, None, y)
    exact = y.double().sum((2, 3), keepdim=True).float()
    torch.testing.assert_close(total, exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(product, y.double().square().sum((2, 3), keepdim=True).float())
    torch.testing.assert_close(gpu.rescale(y, factor), y * factor)


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("form", [FIRST, LAST])
def test_a_large_mean_does_not_cost_precision(form):
    shape = (3, 4, 12, 12)
    y = normal(shape, form=form, mean=1000.0)
    grad = normal(shape, form=form)
    mean, m2 = gpu.moments(y)
    pixels = shape[2] * shape[3]
    center = mean.mean((0, 2, 3))
    between = pixels * (mean - center.view(-1, 1, 1)).square().sum((0, 2, 3))
    variance = (m2.sum((0, 2, 3)) + between) / (shape[0] * pixels)
    exact = y.double().var((0, 2, 3), correction=0)
    assert ((variance - exact) / exact).abs().max() < 1e-4  # naively 0.1
    _, _, product = gpu.gradient_sums(grad, None, y, center)
    terms = grad.double() * (y.double() - center.double().view(-1, 1, 1))
    error = (product - terms.sum((2, 3), keepdim=True)).abs()
    assert (error < 1e-6 * terms.abs().sum((2, 3), keepdim=True)).all()


@runs_kernels
def test_without_relu_the_gradient_is_not_copied():
    y, grad = (normal((2, 3, 4, 4)) for _ in range(2))
    assert gpu.gradient_sums(grad, None, y)[0] is grad


@pytest.mark.parametrize("norm", ["train", "eval", None])
@runs_kernels
def test_the_fused_tail(monkeypatch, norm):
    """By these kernels, it equals one step after another."""
    monkeypatch.setattr(tail, "_passes", lambda y: gpu)
    torch.manual_seed(0)
    gate = SqueezeExcitation(6, 2).to(DEVICE, torch.float64)
    bn = nn.BatchNorm2d(6).to(DEVICE, torch.float64).train(norm == "train")
    maps = [normal((3, 6, 5, 4), torch.float64, LAST).requires_grad_() for _ in range(2)]
    results = []
    for function in (tail.rescaled, None):
        bn.reset_running_stats()
        first = bn if norm else None
        if function is None:
            x = maps[0] if first is None else first(maps[0])
            out = torch.relu(x * gate.excite(x.mean((2, 3), keepdim=True)) + maps[1])
        else:
            out = function(maps[0], gate.excite, norm=first, shortcut=maps[1], relu=True)
        weights = [*gate.parameters(), *(bn.parameters() if norm else [])]
        results.append([out, *torch.autograd.grad(out.sin().sum(), [*maps, *weights])])
        results[-1].append(bn.running_var.clone())
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@runs_kernels
def test_nan_passes_the_relu_and_its_gradient_as_in_torch():
    y = normal((2, 4, 3, 3))
    y[0, 1, 2, 0] = torch.nan
    one = torch.ones(2, 4, 1, 1, device=DEVICE)
    out = gpu.rescale(y, one, relu=True)
    torch.testing.assert_close(out, y.relu(), equal_nan=True)
    grad = normal(y.shape)
    masked = gpu.gradient_sums(grad, out, y)[0]
    assert torch.equal(masked, torch.ops.aten.threshold_backward(grad, out, 0))
    assert gpu.moments(y)[0].isnan().sum() == 1


@runs_kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_maps_without_elements(shape):
    y, factor = normal(shape), normal((*shape[:2], 1, 1))
    sums = [*gpu.moments(y), *gpu.gradient_sums(y, y, y)[1:]]
    assert {each.shape for each in sums} == {(*shape[:2], 1, 1)}
    assert torch.equal(sums[0].isnan(), y.mean((2, 3), keepdim=True).isnan())
    assert not any(each.any() for each in sums[1:])
    assert gpu.rescale(y, factor).shape == gpu.combine(y, factor, factor).shape == shape


@runs_kernels
@pytest.mark.usefixtures("_small_tiles")
def test_two_runs_agree_bit_by_bit():
    y, grad = (normal((2, 8, 9, 9), form=LAST) for _ in range(2))
    runs = [(*gpu.moments(y), *gpu.gradient_sums(grad, y, y)) for _ in range(2)]
    assert all(map(torch.equal, *runs))


@runs_kernels
def test_offsets_beyond_32_bits():
    """Two images of one channel, of which only the first pixels are read."""
    pixels = 2**31 + 8
    torch.use_deterministic_algorithms(False)  # filling this memory would take seconds
    y = torch.empty(pixels + 4, dtype=torch.float16, device=DEVICE)
    y[-4:] = torch.tensor([1, 2, 3, 6], dtype=y.dtype)
    y[:4] = 5
    mean, m2 = torch.empty(2, 2, device=DEVICE)
    sizes = (2, 1, pixels, pixels, 1, 1, 4)
    triton_kernels.moments_kernel[(2,)](y, mean, m2, *sizes, block_c=1, block_p=4)
    assert mean.tolist() == [5, 3]
    assert m2.tolist() == [0, 14]


def calls():
    y, factor, channels = normal((2, 5, 4, 3)), normal((2, 5, 1, 1)), normal(5)
    operators = torch.ops.se_lightning
    yield operators.moments.default, (y,)
    yield operators.gradient_sums.default, (y, y.relu(), y, channels)
    yield operators.product_sums.default, (y, y, None)
    yield operators.rescale.default, (y, factor, factor, y, channels, True)
    yield operators.rescale.default, (y, factor, None, None, None, False)


@runs_kernels
def test_the_operators_keep_the_rules_of_torch():
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not INTERPRETED:
        checks += ["test_aot_dispatch_static", "test_aot_dispatch_dynamic"]
    for operator, arguments in calls():
        opcheck(operator, arguments, test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize("form", [FIRST, LAST])
def test_nothing_waits_for_the_gpu(form):
    y, factor, center = normal((8, 64, 56, 56), form=form), normal((8, 64, 1, 1)), normal(64)
    for mode in ("default", "error"):  # the first call loads the kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            gpu.moments(y)
            out = gpu.rescale(y, factor, factor, y, relu=True)
            masked, _, _ = gpu.gradient_sums(y, out, y, center)
            gpu.combine(masked, factor, factor, center, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("form", [FIRST, LAST])
def test_maps_of_more_elements_than_32_bits_count(form):
    shape = (3, 64, 3400, 3400)  # 2.2 * 10^9
    torch.use_deterministic_algorithms(False)
    y = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE).contiguous(memory_format=form)
    y[-1, -1, -1, -5:] = 2
    sums = gpu.gradient_sums(y, None, y)[2]
    assert sums[-1, -1].item() == 20
    assert sums.count_nonzero() == 1
    assert gpu.moments(y)[0][-1, -1].item() == pytest.approx(10 / 3400**2)
    result = gpu.rescale(y, torch.full((3, 64, 1, 1), 3.0, device=DEVICE))
    assert result[-1, -1, -1, -5:].sum() == result.sum() == 30
