import copy
import functools
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle
from torchvision.models import feature_extraction

from se_lightning import FakeDataModule, ImageClassifier
from se_lightning.models import create_model
from se_lightning.models.layers.find import find_gates, hidden_widths
from se_lightning.models.layers.gates import (
    ConcurrentExcitation,
    DoubleSigmoid,
    SpatialExcitation,
    SqueezeExcitation,
)
from se_lightning.models.surgery.insert import add_excitation, remove_excitation, restore_hooks

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A second thread does not speed up small images, and is slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torchvisions(name: str, block: str = "", skips: str = ""):
    """Return a builder, and the number of residual blocks in torchvision's network."""

    def blocks(net: nn.Module) -> int:
        found = [module for module in net.modules() if type(module).__name__ == block]
        return sum(getattr(module, skips) for module in found) if skips else len(found)

    return getattr(torchvision.models, name), blocks


def timms(name: str, blocks: int):
    return functools.partial(timm.create_model, name), lambda net: blocks


# name: (builder, number of residual blocks, number of resolutions)
NETWORKS: dict[str, tuple[Callable, Callable[[nn.Module], int], int]] = {
    "resnet50": (*torchvisions("resnet50", "Bottleneck"), 4),
    # The stem and the first block, which has no stride, share a resolution.
    "mobilenet_v3_large": (
        *torchvisions("mobilenet_v3_large", "InvertedResidual", "use_res_connect"),
        5,
    ),
    "convnext_tiny": (*torchvisions("convnext_tiny", "CNBlock"), 4),
    "regnet_y_400mf": (*torchvisions("regnet_y_400mf", "ResBottleneckBlock"), 5),
    "efficientnet_b0": (*torchvisions("efficientnet_b0", "MBConv", "use_res_connect"), 5),
    "swin_t": (torchvision.models.swin_t, lambda net: 2 * sum([2, 2, 6, 2]), 4),
    "timm/resnet18": (*timms("resnet18", sum([2, 2, 2, 2])), 4),
    "timm/regnetx_002": (*timms("regnetx_002", sum([1, 1, 4, 7])), 5),
    "timm/convnext_atto": (*timms("convnext_atto", sum([2, 2, 6, 2])), 4),
    # All but the first block of each of the stages that has more than one.
    "timm/efficientnet_lite0": (*timms("efficientnet_lite0", sum([0, 1, 1, 2, 2, 3, 0])), 5),
    "timm/resnetv2_50": (*timms("resnetv2_50", sum([3, 4, 6, 3])), 4),
}


@functools.cache
def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]()


def network(name: str) -> nn.Module:
    return copy.deepcopy(original(name))


def small() -> nn.Module:
    """Return a plain network of this package whose last norms are not zero."""
    torch.manual_seed(0)
    return create_model("se_resnet20", gate="none")


def gated(model: nn.Module, where: str = "residual", **options) -> nn.Module:
    options = {"image": IMAGE, "ratio": 4, **options}
    return add_excitation(model, where, **options)


def places(model: nn.Module) -> list[str]:
    """Return the paths of the modules that have an inserted gate."""
    return [
        p for p, module in model.named_modules() if hasattr(getattr(module, "se", 0), "insertion")
    ]


def outputs(model: nn.Module, training: bool) -> list[torch.Tensor]:
    """Return the logits, and the buffers after the forward pass."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    copied = copy.deepcopy(model).train(training)
    with torch.no_grad():
        return [copied(x), *copied.buffers()]


def equal(ones, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


every = pytest.mark.parametrize(
    ("name", "where"), [(name, where) for name in NETWORKS for where in ("residual", "stages")]
)


@every
def test_inserted_gates_are_an_identity_and_removal_leaves_no_trace(name, where):
    plain, model = original(name), network(name)
    state = plain.state_dict()
    assert gated(model, where) is model
    _, blocks, stages = NETWORKS[name]
    count = blocks(plain) if where == "residual" else stages
    assert len(places(model)) == count
    own = find_gates(plain)  # torchvision's mobile networks have some, with other names
    assert [path for path in find_gates(model) if path not in own] == list(hidden_widths(model))
    for training in (False, True):
        assert equal(outputs(model, training), outputs(plain, training))
    kept = {key: value for key, value in model.state_dict().items() if key in state}
    assert list(kept) == list(state)
    new = [key for key in model.state_dict() if key not in state]
    assert all(key.startswith(tuple(f"{path}.se." for path in places(model))) for key in new)
    assert equal(kept.values(), state.values())

    assert remove_excitation(model) is model
    assert list(model.state_dict()) == list(state)
    assert repr(model) == repr(plain)
    assert equal(outputs(model, False), outputs(plain, False))
    assert not any(module._forward_hooks for module in model.modules())


@every
def test_all_gates_learn_from_the_first_step(name, where):
    model = gated(network(name), where).train()
    for parameter in network_parameters(model):
        if parameter.abs().max() < 1e-4:  # a last norm or a layer scale that starts at zero
            nn.init.ones_(parameter)
    for module in model.modules():
        if hasattr(module, "p"):  # dropout and stochastic depth, which may leave a gate out
            module.p = 0.0
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    optimizer = torch.optim.SGD([p for gate in gates for p in gate.parameters()], lr=1.0)
    torch.manual_seed(0)
    x, labels = torch.randn(4, 3, 64, 64), torch.arange(4)

    def learns(layer: str) -> bool:
        return all(getattr(gate, layer).weight.grad.abs().sum() > 0 for gate in gates)

    nn.functional.cross_entropy(model(x), labels).backward()
    assert learns("fc2")
    assert not any(gate.fc1.weight.grad.any() for gate in gates)  # behind a layer of zeros
    optimizer.step()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), labels).backward()
    assert learns("fc1")
    assert learns("fc2")
    assert all(gate.fc1.weight.grad.isfinite().all() for gate in gates)


def network_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the network's scales, without those of its gates."""
    ends = ("weight", "gamma", "layer_scale")
    return [p for n, p in model.named_parameters() if ".se." not in n and n.endswith(ends)]


RESNETS = {
    "resnet18": [f"layer{s}.{b}.bn2" for s in (1, 2, 3, 4) for b in range(2)],
    "resnet50": [f"layer{s}.{b}.bn3" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)],
}


@pytest.mark.parametrize("name", RESNETS)
def test_gates_of_a_resnet_follow_its_last_norms_or_its_stages(name):
    model = getattr(torchvision.models, name)()
    assert places(gated(model)) == RESNETS[name]
    remove_excitation(model)
    assert places(gated(model, "stages")) == ["layer1", "layer2", "layer3", "layer4"]
    assert list(model.layer1._modules) == [*map(str, range(len(model.layer1) - 1)), "se"]
    # A hook would apply the gate a second time.
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "where", "found"),
    [
        ("convnext_tiny", "stages", [1, 3, 5, 7]),
        ("swin_t", "stages", [1, 3, 5, 7]),
        # Resolutions 1/2 to 1/32; the last is the head's convolution.
        ("mobilenet_v3_large", "stages", [1, 3, 6, 12, 16]),
        ("efficientnet_b0", "stages", [1, 2, 3, 5, 8]),
    ],
)
def test_stages_are_found_in_a_list_of_features(name, where, found):
    assert places(gated(network(name), where)) == [f"features.{n}" for n in found]


def test_a_block_ends_in_its_last_norm():
    convnext = places(gated(network("convnext_tiny")))
    assert convnext[0] == "features.1.0.block.2"  # a depthwise convolution, a permutation, LN
    regnet = places(gated(network("regnet_y_400mf")))
    assert regnet[0] == "trunk_output.block1.block1-0.f.c.1"
    pre_activation = places(gated(network("timm/resnetv2_50")))
    assert pre_activation[0] == "stages.0.blocks.0.norm3"


def test_a_glob_selects_modules_by_path():
    model = gated(torchvision.models.resnet50(), "layer[34].*.bn3")
    assert places(model) == [path for path in RESNETS["resnet50"] if path[5] in "34"]


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Wired(nn.Module):
    """Layers that a test connects."""

    def __init__(self, wiring: Callable) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.GroupNorm(3, 3)
        self.to_one, self.norm_of_one = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)
        self.sum = Sum()
        self.wiring = wiring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wiring(self, x)


def attend(net: Wired, x: torch.Tensor) -> torch.Tensor:
    """Weight pixels by a map that has its own norm."""
    return x * net.norm_of_one(net.to_one(x)).sigmoid()


WIRINGS = {
    "norm of the branch": (lambda n, x: x + n.norm1(n.conv1(x)), ["norm1"]),
    "in place": (lambda n, x: n.norm1(n.conv1(x)).add_(x), ["norm1"]),
    "last norm": (lambda n, x: x + n.norm2(n.conv2(n.norm1(n.conv1(x)))), ["norm2"]),
    "norm before convolution": (lambda n, x: x + n.conv1(n.norm1(x)), ["norm1"]),
    "projected shortcut": (
        lambda n, x: n.norm1(n.conv1(x)) + n.norm2(n.conv3(n.conv2(x))),
        ["norm2"],
    ),
    "halves of one norm": (
        lambda n, x: x + torch.cat(n.norm1(n.conv1(x)).split([1, 2], 1), 1),
        ["norm1"],
    ),
    "attention with a norm": (lambda n, x: x + attend(n, n.norm1(n.conv1(x))), ["norm1"]),
    "two units": (
        lambda n, x: (y := x + n.norm1(n.conv1(x))) + n.norm2(n.conv2(y)),
        ["norm1", "norm2"],
    ),
    "no sum": (lambda n, x: n.norm1(n.conv1(x)), []),
    "no norm": (lambda n, x: x + n.conv2(n.conv1(x)), []),
    "norm before the fork": (lambda n, x: (y := n.norm1(x)) + n.conv1(y), []),
    "branches side by side": (
        lambda n, x: x + (n.norm1(n.conv1(x)) + n.norm2(n.conv2(x))),
        [],
    ),
    "concatenated branches": (
        lambda n, x: x + n.conv3(torch.cat([n.norm1(x)[:, :1], n.norm2(x)[:, 1:]], 1)),
        [],
    ),
    "sum in a module without the branch": (lambda n, x: n.sum(x, n.norm1(n.conv1(x))), []),
    "broadcast sum": (lambda n, x: x + n.norm1(n.conv1(x)).mean((2, 3), keepdim=True), []),
}


@pytest.mark.parametrize(("wiring", "found"), WIRINGS.values(), ids=WIRINGS)
def test_a_residual_block_is_recognized_by_its_sum(wiring, found):
    model = Wired(wiring)
    if not found:
        with pytest.raises(ValueError, match="no place for a gate in this Wired"):
            gated(model)
    else:
        assert places(gated(model, ratio=1)) == found


class Listed(nn.Module):
    """Keeps its blocks in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        strides = (2, 1, 2, 64)
        blocks = (nn.Sequential(nn.Conv2d(3, 3, 3, s, 1), nn.ReLU()) for s in strides)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_stages_in_a_module_list_stop_before_a_single_pixel():
    assert places(gated(Listed(), "stages", ratio=1)) == ["blocks.1", "blocks.2"]


class Squares(nn.Module):
    """Residual blocks whose maps have as many pixels per side as channels."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.norm = nn.LayerNorm(8) if last else nn.BatchNorm2d(8)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = x.permute(0, 2, 3, 1) if self.last else x
        y = self.norm(y)
        return x + (y.permute(0, 3, 1, 2) if self.last else y)


@pytest.mark.parametrize("last", [False, True])
def test_a_gate_scales_channels_in_either_layout(last):
    model = gated(Squares(last)).eval()
    (gate,) = (module for module in model.modules() if isinstance(module, SqueezeExcitation))
    with torch.no_grad():
        gate.fc2.bias[2] = -200.0
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IMAGE)
    (y,) = seen
    assert y.shape == (1, 8, 8, 8)
    channels = y.movedim(-1, 1) if last else y
    assert [n for n in range(8) if not channels[:, n].any()] == [2]


def test_a_gate_in_a_convnext_scales_channels_last():
    model = gated(network("convnext_tiny"), "features.3.0.block.2").eval()
    norm = model.features[3][0].block[2]
    ((path, width),) = hidden_widths(model).items()
    assert (path, width) == ("features.3.0.block.2.se.nchw", 192 // 4)
    with torch.no_grad():
        norm.se.nchw.fc2.bias[7] = -200.0
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IMAGE)
    assert seen[0].shape[-1] == 192
    assert (seen[0] == 0).all((0, 1, 2)).nonzero().tolist() == [[7]]


def trained(model: nn.Module) -> nn.Module:
    """Return the model in eval mode with random gates."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".se." in name:
            nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(params=["residual", "stages"])
def model(request) -> nn.Module:
    return trained(gated(torchvision.models.resnet18(num_classes=10), request.param))


def test_a_copy_is_independent(model):
    copied = copy.deepcopy(model)
    expected = model(IMAGE)
    assert not torch.equal(remove_excitation(copied)(IMAGE), expected)
    assert torch.equal(model(IMAGE), expected)
    assert places(model)
    assert not places(copied)
    assert not any(module._forward_hooks for module in copied.modules())


def test_a_saved_model_can_be_loaded(model, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(IMAGE), model(IMAGE))
    assert places(remove_excitation(again)) == []


def test_new_hooks_on_a_loaded_model_keep_its_gates(tmp_path, monkeypatch):
    model = trained(gated(torchvision.models.resnet18()))
    torch.save(model, tmp_path / "model.pt")
    # As in another process, where the number of this gate's hook is still free.
    number = model.layer1[0].bn2.se.insertion.id
    monkeypatch.setattr(RemovableHandle, "next_id", number)
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    again.layer1[0].bn2.register_forward_hook(lambda *_: None)
    assert torch.equal(again(IMAGE), model(IMAGE))


def test_removal_after_training_restores_the_network():
    model = torchvision.models.resnet18().eval()
    expected = model(IMAGE)
    trained(gated(model))
    assert not torch.equal(model(IMAGE), expected)
    assert torch.equal(remove_excitation(model)(IMAGE), expected)


def test_weights_of_the_plain_network_can_be_loaded(model):
    plain = torchvision.models.resnet18(num_classes=10)
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(".se." in key for key in found.missing_keys)


def test_torchvisions_feature_extractor_includes_the_gates(model):
    extractor = feature_extraction.create_feature_extractor(model, {"layer4": "map"})
    x = model.maxpool(model.relu(model.bn1(model.conv1(IMAGE))))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
    torch.testing.assert_close(extractor(IMAGE)["map"], x)


def test_a_gated_network_compiles_to_one_graph(model):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGE), model(IMAGE))


def test_a_gated_network_can_be_exported(model):
    exported = torch.export.export(model, (IMAGE,))
    torch.testing.assert_close(exported.module()(IMAGE), model(IMAGE))


def test_ddp_finds_all_gates(model, tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model.train())
        for _ in range(2):  # the second fails if a parameter had no gradient
            parallel(torch.randn(2, 3, 64, 64)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_gated_network_trains_as_an_image_classifier(tmp_path):
    net = torchvision.models.resnet18(num_classes=10)
    model = ImageClassifier(gated(net), num_classes=10)
    before = copy.deepcopy(net.state_dict())
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", fast_dev_run=True, **quiet)
    trainer.fit(model, datamodule=FakeDataModule(size=8, image_size=64))
    moved = [key for key, value in net.state_dict().items() if not torch.equal(value, before[key])]
    assert sum(key.endswith("se.fc2.weight") for key in moved) == 8


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"gate": "spatial"}, SpatialExcitation),
        ({"gate": "concurrent"}, ConcurrentExcitation),
        ({"gate": "concurrent", "merge": "max", "squeeze": "max"}, ConcurrentExcitation),
        ({"squeeze": "none", "se_bias": False}, SqueezeExcitation),
    ],
)
def test_each_kind_of_gate_is_an_identity_that_learns(options, kind):
    plain, model = small(), gated(small(), **options)
    assert all(isinstance(model.get_submodule(path).se, kind) for path in places(model))
    assert len(places(model)) == 9
    for training in (False, True):
        assert equal(outputs(model, training), outputs(plain, training))
    last = [p for n, p in model.named_parameters() if n.endswith(("fc2.weight", "conv.weight"))]
    last = [parameter for parameter in last if not parameter.any()]
    assert len(last) == (18 if kind is ConcurrentExcitation else 9)
    model(IMAGE).logsumexp(1).sum().backward()
    assert all(parameter.grad.any() for parameter in last)


def test_the_first_layer_has_hes_variance_and_no_bias():
    model = gated(torchvision.models.resnet50(), "layer4.*.bn3", ratio=2)
    for path in places(model):
        fc1 = model.get_submodule(path).se.fc1
        assert fc1.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
        assert not fc1.bias.any()


def test_the_options_reach_the_gates():
    model = gated(small(), ratio=3, divisor=8, squeeze="avgmax", se_bias=False)
    assert set(hidden_widths(model).values()) == {8, 24}  # 16 / 3 and 32 / 3 to 8, 64 / 3 to 24
    gate = model.layer1[0].bn2.se
    assert (gate.squeeze, gate.fc1.bias, type(gate.gate)) == ("avgmax", None, DoubleSigmoid)


def test_gates_with_one_hidden_unit_cause_a_warning():
    with pytest.warns(UserWarning, match=r"ratio=32 leaves one hidden unit in 6 gates \(layer1"):
        gated(small(), ratio=32)


def test_gate_none_changes_nothing():
    model = small()
    assert gated(model, gate="none") is model
    assert repr(model) == repr(small())


def test_gates_take_the_device_and_dtype_of_their_places():
    model = gated(torchvision.models.resnet18().to("meta", torch.bfloat16))
    assert places(model) == RESNETS["resnet18"]
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    kinds = {(p.device.type, p.dtype) for gate in gates for p in gate.parameters()}
    assert kinds == {("meta", torch.bfloat16)}


class Touchy(nn.Module):
    """Counts its forward passes, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.body(x)


@pytest.mark.parametrize("where", ["body.1", "residual", "body.?"])
def test_the_probe_leaves_no_trace(where):
    model = Touchy().train()
    model.body[1].eval()  # frozen
    model.body[1].num_batches_tracked.fill_(7)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    if where == "body.1":
        remove_excitation(gated(model, where))
    else:
        model.body.add_module("4", model.body[3])
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="`where`"):
            gated(model, where)
        assert torch.equal(torch.get_rng_state(), random)
    assert list(model.state_dict()) == list(before)
    assert equal(model.state_dict().values(), before.values())
    assert [m.training for m in model.modules()] == modes
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(one or other for one, other in hooks)


def test_removal_keeps_the_gates_that_a_network_is_built_with():
    model = create_model("se_resnet20", ratio=4)
    own = list(hidden_widths(model))
    gated(model, "layer?.?.bn2")
    assert len(hidden_widths(model)) == 18
    assert list(hidden_widths(remove_excitation(model))) == own


def test_a_block_that_would_run_its_gate_as_a_layer_is_refused():
    """Layers inside and after it can have gates nevertheless."""
    net = torchvision.models.densenet121()
    with pytest.raises(ValueError, match="denseblock1`: it is a ModuleDict"):
        add_excitation(net, "stages")
    add_excitation(net.eval(), "features.transition?")
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert len(find_gates(net)) == 3


def test_a_second_insertion_is_refused_and_changes_nothing():
    model = trained(gated(torchvision.models.resnet18()))
    expected, keys = model(IMAGE), list(model.state_dict())
    with pytest.raises(ValueError, match=r"`layer1.0.bn2`: it already has an `se`; remove_"):
        gated(model)
    with pytest.raises(ValueError, match=r"`layer2.0.bn2`: it already has an `se`"):
        gated(model, "layer2.?.bn?")  # its first match, layer2.0.bn1, could have a gate
    assert list(model.state_dict()) == keys
    assert torch.equal(model(IMAGE), expected)
    gated(model, "stages")
    assert torch.equal(model(IMAGE), expected)


class Twice(nn.Module):
    """Uses one norm twice, never runs another, and has a module that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.idle = nn.BatchNorm2d(3)
        self.pair = Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.norm(self.conv(x))
        return self.pair(x + self.norm(self.conv(x)))[0]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("residual", r"`where` \(='residual'\) must not match `norm`: it ran 2 times"),
        ("idle", "`idle`: it ran 0 times"),
        ("pair", r"`pair`: its output is not a feature map \(N, C, H, W\) or"),
        ("stages", r"for a gate in this Twice; use 'residual' .* such as conv, norm"),
        ("layer3.*.bn3", r"`where` \(='layer3.\*.bn3'\) matches no place"),
    ],
)
def test_places_that_cannot_have_a_gate_are_refused_by_name(where, message):
    model = Twice()
    with pytest.raises(ValueError, match=message):
        gated(model, where)
    assert repr(model) == repr(Twice())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "`ratio`"),
        ({"ratoi": 4}, "add_excitation has no option `ratoi`. Nearest: ratio"),
        ({"gate_activation": "tanh"}, "add_excitation has no option `gate_activation`"),
        (
            {"gate": "concurrent", "merge": "product"},
            r"`merge` .* must be 'sum' or 'max': .* x \* x",
        ),
        ({"gate": "foo"}, "`gate` "),
        ({"image": torch.zeros(1, 1, 64, 64)}, r"`image` \(of shape \(1, 1, 64, 64\)\) with"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    model = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=message):
        gated(model, **options)
    assert repr(model) == repr(torchvision.models.resnet18())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_inserted_gates_is_refused():
    with pytest.raises(ValueError, match=r"SEResNet.* has no gate inserted"):
        remove_excitation(create_model("se_resnet20", ratio=4))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), (3, 224, 224)),
        (lambda: timm.create_model("resnet18", in_chans=1), (1, 224, 224)),
        (lambda: create_model("se_resnet20", gate="none", in_channels=4), (4, 32, 32)),
        (lambda: timm.create_model("efficientnet_b1"), (3, 240, 240)),
    ],
)
def test_the_probe_image_has_the_size_that_the_network_needs(build, size):
    model, seen = build(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    add_excitation(model, ratio=4)
    assert seen == [(1, *size)]


def test_restore_hooks_reactivates_gates_in_converted_norms():
    model = add_excitation(
        torchvision.models.resnet18(), "residual", image=torch.zeros(1, 3, 64, 64)
    )
    for module in model.modules():
        if isinstance(module, SqueezeExcitation):
            nn.init.constant_(module.fc2.bias, 1.0)
    x = torch.randn(2, 3, 64, 64)
    gated = model.eval()(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert not torch.equal(converted(x), gated)
    restore_hooks(converted)
    restore_hooks(converted)  # a second call changes nothing
    assert torch.equal(converted(x), gated)
    assert remove_excitation(converted) is converted
    assert not any(module._forward_hooks for module in converted.modules())
