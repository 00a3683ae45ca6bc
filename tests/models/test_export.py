"""Compilation, TorchScript, export, ONNX, memory formats and precisions."""

import copy

import pytest
import torch
from torch import nn

from se_lightning.models import (
    ConcurrentExcitation,
    SpatialExcitation,
    SqueezeExcitation,
    create_model,
    list_models,
)

ONE_PER_FAMILY = [
    "se_resnet50",
    "se_resnext50_32x4d",
    "senet154",
    "se_preact_resnet50",
    "se_wrn16_8",
    "se_densenet121",
    "se_inception_v3",
    "se_inception_resnet_v2",
    "se_bn_inception",
    "se_vgg16_bn",
    "se_mobilenet",
    "se_shufflenet",
    "se_shake_shake26_2x96d",
    "se_simple",
    "se_nested",
]
FAST = ("se_resnet20", "se_preact_resnet20", "se_mobilenet", "se_simple", "se_nested")


def slow_but(fast, names):
    return [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in names]


EVERY = slow_but(FAST, list_models())
FAMILIES = slow_but(FAST, dict.fromkeys([*FAST, *ONE_PER_FAMILY]))
pytestmark = [
    pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit"),
    pytest.mark.timeout(1200),
]


def built(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    size = model.image_size or max(64, model.min_size)
    return model, torch.randn(2, model.in_channels, size, size)


@pytest.mark.parametrize("name", EVERY)
def test_a_network_compiles_to_one_graph(name):
    torch._dynamo.reset()
    model, x = built(name)
    with torch.no_grad():
        expected = model(x)
        model.compile(fullgraph=True, backend="eager")  # in place: the keys stay
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in key for key in model.state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_compiles_to_one_graph_in_training(name):
    torch._dynamo.reset()
    model, x = built(name)
    model.train().compile(fullgraph=True, backend="eager")
    model(x).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_network_exports_with_a_dynamic_batch_size(name):
    model, x = built(name)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.cat([x, 2 * x[:1]])
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


# torch.jit.script is deprecated, but other tools still use it.
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:The TorchScript type")
@pytest.mark.parametrize("name", EVERY)
def test_a_network_can_be_scripted(name):
    model, x = built(name)
    keys = set(model.state_dict())
    if name == "se_resnet20":
        model.set_grad_checkpointing()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(scripted.state_dict()) == set(model.state_dict()) == keys
    with pytest.raises(torch.jit.Error, match="The network takes images"):
        scripted(x[:, :0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:The TorchScript type")
@pytest.mark.parametrize("name", ["se_resnet20", "se_mobilenet", "se_shake_shake26_2x96d"])
def test_a_scripted_network_follows_the_mode(name):
    options = {"depth": 8, "width": 8} if "shake" in name else {"dropout": 0.5}
    model = create_model(name, ratio=4, **options).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    scripted = torch.jit.script(model.eval())
    for train in (True, False):
        with torch.no_grad():
            torch.manual_seed(0)
            expected = copy.deepcopy(model).train(train)(x)
            torch.manual_seed(0)
            torch.testing.assert_close(scripted.train(train)(x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:The TorchScript type")
@pytest.mark.parametrize(
    "gate",
    [
        SqueezeExcitation(8, 2),
        SqueezeExcitation(8, 2, squeeze="max", gate_activation="hard-sigmoid"),
        SqueezeExcitation(8, 2, squeeze="none", bias=False),
        SqueezeExcitation(8, 2, squeeze="avgmax", gate_activation="double-sigmoid"),
        SpatialExcitation(8),
        ConcurrentExcitation(8, 2, merge="max"),
        ConcurrentExcitation(8, 2, merge="product", squeeze="max"),
    ],
)
def test_a_gate_in_another_network_can_be_scripted(gate):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), gate)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))
    assert network[1] is gate


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_inductor_gives_the_same_outputs(name):
    torch._dynamo.reset()
    model, x = built(name)
    with torch.no_grad():
        expected = model(x)
        model.compile(fullgraph=True)
        found = model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.slow
# Internal warnings of torch's exporter and of onnxscript.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_onnxruntime_gives_the_same_outputs(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, x = built(name)
    path = tmp_path / "model.onnx"
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    x = torch.cat([x, 2 * x[:1]])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_gives_the_same_outputs(name):
    model, x = built(name)
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        found = model(x.contiguous(memory_format=torch.channels_last))
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


def rounding(model, x):
    """Return the relative error of bfloat16's logits, with statistics of real activations."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, *x.shape[1:]))
        model.eval()
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_finite_and_as_accurate_as_without_gates(name):
    """Uses autocast like bf16-mixed; the plain twin shows the effect of rounding alone."""
    model, x = built(name)
    plain = create_model(name, gate="none")
    assert rounding(model, x) < 2 * rounding(plain, x) + 0.01
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
