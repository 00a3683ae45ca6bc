"""What torch.compile, torch.export and Triton's compiler see of the kernels, without a GPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from se_lightning.models.layers.fused import gpu

if not gpu.AVAILABLE:
    pytest.skip("needs Triton", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from se_lightning.models.layers.fused import triton_kernels

LAST = torch.channels_last


class Tail(torch.nn.Module):
    """All passes, one after the other."""

    def forward(self, y, factor, center):
        mean, m2 = gpu.moments(y)
        out = gpu.rescale(y, factor, mean, y, relu=True)
        masked, total, product = gpu.gradient_sums(y, out, y, center)
        _, plain, _ = gpu.gradient_sums(y, None, y)
        return gpu.combine(masked, factor, total, center, y), m2, product, plain


def fake_inputs():
    y = torch.empty(4, 16, 12, 12, device="cuda", dtype=torch.bfloat16)
    factor, center = torch.empty(4, 16, 1, 1, device="cuda"), torch.empty(16, device="cuda")
    return y.to(memory_format=LAST), factor, center


def test_torch_export_sees_the_operators_also_with_sizes_of_unknown_value():
    with FakeTensorMode():
        batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
        shapes = ({0: batch, 2: height}, {0: batch}, None)
        program = torch.export.export(Tail(), fake_inputs(), dynamic_shapes=shapes)
    called = {str(node.target) for node in program.graph.nodes}
    names = ("moments", "rescale", "gradient_sums", "product_sums")
    assert {f"se_lightning.{name}.default" for name in names} <= called


class Driver:
    """Triton's driver of a card that is not there."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_sees_the_kernels_and_what_they_write(monkeypatch, dynamic):
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    written = []

    def compiler(graph, _):
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                written.append(sorted(node.kwargs["tensors_to_clone"]))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with FakeTensorMode():
        call = torch.compile(
            Tail(), backend=aot_autograd(fw_compiler=compiler), fullgraph=True, dynamic=dynamic
        )
        found, m2, *_ = call(*fake_inputs())
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=LAST)
    assert m2.shape == (4, 16, 1, 1)
    sums = ["product_ptr", "total_ptr"]
    assert written == [
        ["m2_ptr", "mean_ptr"],
        ["result_ptr"],
        ["masked_ptr", *sums],
        sums,
        ["result_ptr"],
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("form", [torch.contiguous_format, LAST])
def test_compiled_passes_give_what_they_give_eagerly(form):
    torch._dynamo.reset()
    torch.manual_seed(0)
    y = torch.randn(4, 24, 30, 30, device="cuda", dtype=torch.bfloat16)
    y = y.contiguous(memory_format=form)
    factor, center = torch.randn(4, 24, 1, 1, device="cuda"), torch.randn(24, device="cuda")
    expected = Tail()(y, factor, center)
    found = torch.compile(Tail(), fullgraph=True)(y, factor, center)
    torch.testing.assert_close(found, expected)
    assert found[0].stride() == expected[0].stride()


SIZES = ("images", "channels", "pixels", "stride_c", "stride_p", "parts", "length", "rows")
MAPS = ("y_ptr", "grad_ptr", "out_ptr", "masked_ptr", "other_ptr", "result_ptr")
FLAGS = ("has_out", "has_center", "has_offset", "has_other", "has_slope", "relu", "moments")


def assembly(kernel, capability, map_type, stride, **blocks):
    """Compile a kernel for a card that is not there, for maps of sizes that 16 divides."""
    known = {**dict.fromkeys(FLAGS, True), "double": False, "block": 128, **blocks, stride: 1}
    names = list(kernel.arg_names)
    types = dict.fromkeys(names, "*fp32") | dict.fromkeys(SIZES, "i32")
    types |= dict.fromkeys(MAPS, f"*{map_type}") | dict.fromkeys(known, "constexpr")
    values = {(names.index(name),): value for name, value in known.items() if name in names}
    aligned = {name for name in names if types[name] != "constexpr" and name != "parts"}
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs=values,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


@pytest.mark.parametrize("kernel", ["moments", "sums", "rescale", "merge"])
def test_the_kernels_compile_to_loads_of_16_bytes(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, f"{kernel}_kernel")
    code = assembly(kernel, 90, "bf16", "stride_c", block_c=128, block_p=32)
    assert code + assembly(kernel, 80, "fp32", "stride_p", block_c=8, block_p=256)
    maps = sum(f"{name}_ptr" in kernel.arg_names for name in ("y", "grad", "out", "other"))
    assert code.count("ld.global.v4.b32") >= 4 * maps
    assert "ld.local" not in code  # no registers are spilled
    assert "atom" not in code  # sums do not depend on the order of programs


def test_the_module_imports_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", Path(gpu.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.AVAILABLE is False
