"""compile_network: the same results and names as uncompiled, by whole networks and by units."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.utils import counters

from se_lightning import EMA, DigitsDataModule, NonFinite, SEResNetModule
from se_lightning.models import SEResNet, create_model
from se_lightning.models.layers.fused import checks
from se_lightning.models.layers.units import repeated_units
from se_lightning.models.surgery.folded import put_in_place
from se_lightning.modules.compiled import check_compiler, compile_network, is_compiled

CPU = torch.device("cpu")
# torch hides this warning of its own, unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Compile anew in each test, and leave torch's settings as they were."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


def tiny(depth=(2,), widths=(4,), **options):
    torch.manual_seed(0)
    return SEResNet(
        list(depth), widths=list(widths), stem="cifar", ratio=2, num_classes=3, in_channels=1,
        **options,
    )  # fmt: skip


def images(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def graphs():
    return counters["stats"]["unique_graphs"]


def trained(network, steps=2):
    """Return parameters, gradients and buffers after a few batches, one of them smaller."""
    network.train()
    for step in range(steps):
        network(images(4 - step)).square().sum().backward()
    grads = [parameter.grad for parameter in network.parameters()]
    return [*network.parameters(), *grads, *network.buffers()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("regional", [False, True])
def test_training_and_evaluation_equal_those_of_the_uncompiled_network(regional, checkpointing):
    network = tiny()
    plain = copy.deepcopy(network)
    network.set_grad_checkpointing(checkpointing)
    backend = "aot_eager" if checkpointing else "eager"
    compile_network(network, regional=regional, backend=backend)
    torch.testing.assert_close(trained(network), trained(plain))
    after_training = graphs()
    assert after_training == 2  # one version for each size; the units share theirs
    with torch.no_grad():
        for size in (4, 3, 2):
            torch.testing.assert_close(network.eval()(images(size)), plain.eval()(images(size)))
    assert graphs() == after_training + 1  # one version for all of them
    assert list(network.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("regional", [False, True])
def test_generated_code_equals_the_uncompiled_network(regional, checkpointing):
    network = tiny()
    plain = copy.deepcopy(network)
    network.set_grad_checkpointing(checkpointing)
    compile_network(network, regional=regional)
    torch.testing.assert_close(trained(network, 1), trained(plain, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regional", [False, True])
def test_checkpointed_gradients_store_fewer_activations_compiled_as_well(regional):
    def stored(checkpointing):
        network = tiny()
        network.set_grad_checkpointing(checkpointing)
        compile_network(network, regional=regional, backend="aot_eager")
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            network(images(8))
        return sum(sizes)

    assert stored(True) < 0.7 * stored(False)


@pytest.mark.parametrize("regional", [False, True])
def test_hooks_that_are_added_or_removed_after_the_first_call_count(regional):
    network = tiny().eval()
    compile_network(network, regional=regional, backend="eager")
    before = network(images())
    seen = []
    handle = network.layer1[1].se.gate.register_forward_hook(lambda m, i, o: seen.append(o))
    network(images())
    assert [len(each) for each in seen] == [4]
    handle.remove()
    handle = network.layer1[1].se.register_forward_hook(lambda m, i, o: 2 * o)
    assert not torch.equal(network(images()), before)
    handle.remove()
    torch.testing.assert_close(network(images()), before)
    assert len(seen) == 1


@pytest.mark.parametrize("regional", [False, True])
def test_a_gate_that_is_folded_after_the_first_call_counts(regional):
    network = tiny().eval()
    compile_network(network, regional=regional, backend="eager")
    network(images())
    put_in_place(network, "layer1.0.se", torch.full((4,), 3.0))
    plain = copy.deepcopy(network)
    torch.testing.assert_close(network(images()), plain(images()))


def test_units_of_one_structure_share_one_compilation_and_no_limit_is_hit():
    deep = tiny(depth=(2, 2, 2, 2, 2), widths=(4, 6, 8, 10, 12)).eval()
    compile_network(deep, regional=True, backend="eager")
    with torch.no_grad():
        expected = copy.deepcopy(deep)(images())
        torch.testing.assert_close(deep(images()), expected)
    assert graphs() == 9  # of 10 units; torch's limit is 8
    assert not counters["recompile_limit"]
    assert not counters["graph_break"]


def test_too_many_versions_end_in_an_error_and_not_uncompiled():
    network = nn.Linear(2, 2)
    compile_network(network, backend="eager")
    for size in range(2, 34):
        network(torch.zeros(size, 2))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        network(torch.zeros(34, 2))
    assert graphs() == 32


def test_a_network_that_breaks_the_graph_is_refused():
    class Breaks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    network = Breaks(3, 3)
    compile_network(network, backend="eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=r"control flow|branching"):
        network(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("se_resnet18", [2, 1, 1, 1, 1, 1, 1]),
        ("se_resnet50", [1, 2, 1, 3, 1, 5, 1, 2]),
        ("se_mobilenet", None),
        ("se_inception_resnet_v2", [10, 20, 9]),
        ("se_shufflenet", None),
        ("se_preact_resnet20", [3, 1, 2, 1, 2]),
    ],
)
def test_the_repeated_units_of_our_networks(name, units):
    with torch.device("meta"):
        found = repeated_units(create_model(name, ratio=2))
    assert units is None or [len(each) for each in found] == units
    assert max(map(len, found)) > 1


@pytest.mark.parametrize("name", ["se_simple", "se_vgg16_bn", "se_inception_v3", "se_densenet121"])
def test_networks_without_repeated_units_are_refused(name):
    with torch.device("meta"):
        network = create_model(name, **({} if name == "se_simple" else {"ratio": 2}))
    with pytest.raises(ValueError, match=r"`regional` .* has no repeated units"):
        compile_network(network, regional=True)
    assert not is_compiled(network)


@pytest.mark.parametrize(
    ("library", "name", "count"),
    [
        ("torchvision", "resnet50", 16),
        ("torchvision", "mobilenet_v3_large", 15),
        ("timm", "seresnet50", 16),
        ("timm", "resnetv2_50", 16),
        ("timm", "vit_tiny_patch16_224", 12),
    ],
)
def test_the_repeated_units_of_other_libraries(library, name, count):
    with torch.device("meta"):
        if library == "timm":
            network = pytest.importorskip("timm").create_model(name)
        else:
            network = pytest.importorskip("torchvision").models.get_model(name)
    assert sum(map(len, repeated_units(network))) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "`mode` .* default, reduce-overhead, max-autotune"),
        ({"regional": 1}, "`regional`"),
        ({"backend": "indctor"}, "`backend` .* inductor, aot_eager, eager"),
        ({"backend": "eager", "mode": "max-autotune"}, "`mode` .* option of backend='inductor'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compile_network(tiny(), **options)


@pytest.mark.parametrize(
    ("setting", "variable"),
    [("disable", "TORCH_COMPILE_DISABLE"), ("suppress_errors", "TORCHDYNAMO_SUPPRESS_ERRORS")],
)
def test_settings_that_would_run_the_network_uncompiled_are_refused(setting, variable):
    with (
        torch._dynamo.config.patch({setting: True}),
        pytest.raises(ValueError, match=f"{variable} is set"),
    ):
        check_compiler(CPU)


def test_a_backend_that_would_update_statistics_twice_is_refused():
    network = tiny()
    network.set_grad_checkpointing()
    with pytest.raises(ValueError, match="aot_eager"):
        compile_network(network, backend="eager")


def test_a_platform_without_support_is_refused(monkeypatch):
    def fail():
        raise RuntimeError("Python 3.15+ not yet supported for torch.compile")

    monkeypatch.setattr(torch._dynamo.eval_frame, "check_if_dynamo_supported", fail)
    with pytest.raises(ValueError, match=r"does not work here: Python 3\.15"):
        check_compiler(CPU)


def test_a_missing_triton_is_refused(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ValueError, match="needs Triton"):
        check_compiler(torch.device("cuda"))
    check_compiler(torch.device("cuda"), "aot_eager")  # generates no code


@pytest.mark.parametrize("regional", [False, True])
def test_lightnings_summary_does_not_compile_for_its_example(regional, tmp_path):
    module = SEResNetModule([2], widths=[4], stem="cifar", ratio=2, num_classes=10, in_channels=1)
    compile_network(module.backbone, regional=regional, backend="eager")
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DigitsDataModule())
    assert graphs() == 1


class Poison(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            batch[0].fill_(float("nan"))


@pytest.mark.parametrize("regional", [False, True])
def test_an_average_and_a_skipped_step_equal_those_of_the_uncompiled_network(
    regional, tmp_path, monkeypatch
):
    monkeypatch.setattr(checks, "ENABLED", False)  # compiled, the fused tails round differently
    states = []
    for compiles in (False, True):
        torch.manual_seed(0)
        options = {"ratio": 2, "num_classes": 10, "in_channels": 1}
        module = SEResNetModule([2], widths=[4], stem="cifar", **options)
        if compiles:
            compile_network(module.backbone, regional=regional, backend="eager")
        watch = NonFinite("skip")
        trainer = pl.Trainer(
            max_epochs=1, limit_train_batches=3, limit_val_batches=1, accelerator="cpu",
            logger=False, callbacks=[Poison(), watch, EMA(0.5)], default_root_dir=tmp_path,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DigitsDataModule(seed=0))
        assert (watch.skipped, watch.last_skipped) == (1, 1)
        states.append(module.state_dict() | {"loss": trainer.callback_metrics["val/loss"]})
    assert graphs() == 2
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["loss"].isfinite()
