"""Weights in other libraries' layouts give the outputs of the networks they come from."""

import argparse
import collections
import dataclasses
import datetime
import functools
import random
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from lightning_fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from se_lightning.models import create_model, load_weights
from se_lightning.models.surgery.folded import folded, repeat_folds
from se_lightning.models.weights.structure import structure

CAFFE = {"ceil_pool": True}
# Network of this package, network of timm, options of the former.
TIMM = [
    ("se_resnet18", "seresnet18", {"divisor": 8}),
    ("se_resnet34", "seresnet34", {"divisor": 8}),
    ("se_resnet50", "seresnet50", {}),
    ("se_resnet101", "seresnet101", {}),
    ("se_resnet152", "seresnet152", {}),
    ("se_resnext50_32x4d", "seresnext50_32x4d", {}),
    ("se_resnext101_32x4d", "seresnext101_32x4d", {}),
    ("se_resnext101_64x4d", "seresnext101_64x4d", {}),
    ("se_resnext101_32x4d", "seresnext101_32x8d", {"group_width": 8}),
    ("senet154", "senet154", {}),
]
LEGACY = [
    ("se_resnet18", "legacy_seresnet18", {"relu_before_gate": True, **CAFFE}),
    ("se_resnet34", "legacy_seresnet34", {"relu_before_gate": True, **CAFFE}),
    ("se_resnet50", "legacy_seresnet50", {"stride_in": "1x1", **CAFFE}),
    ("se_resnet101", "legacy_seresnet101", {"stride_in": "1x1", **CAFFE}),
    ("se_resnet152", "legacy_seresnet152", {"stride_in": "1x1", **CAFFE}),
    ("se_resnext50_32x4d", "legacy_seresnext50_32x4d", CAFFE),
    ("se_resnext101_32x4d", "legacy_seresnext101_32x4d", CAFFE),
    ("senet154", "legacy_senet154", CAFFE),
]
# Plain networks, whose weights load into the gated twin.
PLAIN_TIMM = [
    ("se_resnet18", "resnet18", {}),
    ("se_resnet34", "resnet34", {}),
    ("se_resnet50", "resnet50", {}),
    ("se_resnet101", "resnet101", {}),
    ("se_resnet152", "resnet152", {}),
    ("se_resnext50_32x4d", "resnext50_32x4d", {}),
    ("se_resnext101_32x4d", "resnext101_32x4d", {}),
    ("se_resnext101_64x4d", "resnext101_64x4d", {}),
    ("se_resnet50", "wide_resnet50_2", {"group_width": 128}),
    ("se_densenet121", "densenet121", {}),
    ("se_densenet161", "densenet161", {}),
    ("se_densenet169", "densenet169", {}),
    ("se_densenet201", "densenet201", {}),
    ("se_inception_v3", "inception_v3", {}),
    ("se_inception_resnet_v2", "inception_resnet_v2", {}),
    ("se_vgg16_bn", "vgg16_bn", {}),
    ("se_mobilenet", "mobilenetv1_100", {}),
]
PLAIN_TORCHVISION = [
    *[case for case in PLAIN_TIMM if case[1].startswith(("resnet", "densenet", "vgg"))],
    ("se_resnext50_32x4d", "resnext50_32x4d", {}),
    ("se_resnext101_32x4d", "resnext101_32x8d", {"group_width": 8}),
    ("se_resnext101_64x4d", "resnext101_64x4d", {}),
    ("se_resnet50", "wide_resnet50_2", {"group_width": 128}),
    ("se_resnet101", "wide_resnet101_2", {"group_width": 128}),
    ("se_inception_v3", "inception_v3", {"aux": True}),
    ("se_inception_v3", "inception_v3", {}),
]


# One per kind of keys; the others take long, mostly to initialize.
FAST = ("seresnet18", "seresnet50", "seresnext50_32x4d", "legacy_seresnet18", "legacy_seresnet50")
FAST += ("legacy_seresnext50_32x4d", "resnet18", "resnet50", "densenet121", "mobilenetv1_100")


def cases(table):
    slow = pytest.mark.slow
    return [pytest.param(*c, id=c[1], marks=() if c[1] in FAST else slow) for c in table]


def pixels(name: str) -> int:
    return 107 if "inception" in name else 64


def opened(network: nn.Module) -> nn.Module:
    """Set every gate to exactly 1, in float32: the sigmoid of 40."""
    for path, parameter in network.named_parameters():
        if ".se.fc2." in path:
            nn.init.constant_(parameter, 40.0 if path.endswith("bias") else 0.0)
    return network


def state_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_refused(model, source, message):
    """Check the message, and that the network is unchanged."""
    before = state_of(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        load_weights(model, source)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    return str(raised.value)


@pytest.mark.parametrize(("name", "reference", "options"), TIMM)
def test_names_and_shapes_equal_timms(name, reference, options):
    with torch.device("meta"):
        oracle, model = timm.create_model(reference), create_model(name, **options)
    shapes = {key: tensor.shape for key, tensor in oracle.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    assert list(model.state_dict()) == list(shapes)


@pytest.mark.parametrize(("name", "reference", "options"), cases(TIMM))
def test_timms_layout_loads(name, reference, options, randomize, assert_equal_outputs):
    oracle = randomize(timm.create_model(reference))
    model = create_model(name, **options)
    report = load_weights(model, oracle.state_dict())
    assert report.layout == "timm's"
    assert len(report.loaded) == len(oracle.state_dict())
    assert [report.renamed, report.reshaped, report.kept, report.left_out] == [{}, [], [], {}]
    assert_equal_outputs(model, oracle, 64)


@pytest.mark.parametrize("file", ["timm", "Cadene"])
@pytest.mark.parametrize(("name", "reference", "options"), cases(LEGACY))
def test_the_layouts_of_legacy_timm_and_cadene_load(
    name, reference, options, file, tmp_path, randomize, assert_equal_outputs
):
    oracle = randomize(timm.create_model(reference))
    state = oracle.state_dict()
    if file == "Cadene":  # older than num_batches_tracked and than torch's zip format
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=file == "timm")
    model = create_model(name, **options)
    report = load_weights(model, path)
    assert report.layout == "Cadene's, timm's legacy"
    assert len(report.loaded) == len(state)
    assert report.renamed["fc.weight"] == "last_linear.weight"
    assert_equal_outputs(model, oracle, 64)


@pytest.mark.parametrize(("name", "reference", "options"), cases(PLAIN_TIMM))
def test_timms_plain_networks_load_into_the_gated_twin(
    name, reference, options, randomize, assert_equal_outputs
):
    oracle = randomize(timm.create_model(reference))
    plain_into_twin(name, oracle, options, pixels(name), assert_equal_outputs)


@pytest.mark.parametrize(("name", "reference", "options"), cases(PLAIN_TORCHVISION))
def test_torchvisions_networks_load_into_the_gated_twin(
    name, reference, options, randomize, assert_equal_outputs
):
    more = {"init_weights": False} if reference == "inception_v3" else {}
    oracle = randomize(torchvision.models.get_model(reference, **more))
    size = 299 if options.get("aux") else pixels(name)
    report = plain_into_twin(name, oracle, options, size, assert_equal_outputs)
    left = [key for key in report.left_out if not key.startswith("AuxLogits.")]
    assert left == []
    assert bool(report.left_out) == (reference == "inception_v3" and not options)


def plain_into_twin(name, oracle, options, size, assert_equal_outputs):
    model = opened(create_model(name, se_bias=True, **options))
    gates = {k: v for k, v in state_of(model).items() if ".se." in k or k.startswith("se.")}
    report = load_weights(model, oracle.state_dict())
    assert gates
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in gates.items())
    assert sorted(report.kept) == sorted(gates)
    assert_equal_outputs(model, oracle, size)
    return report


def test_older_names_in_torchvisions_densenet_files_load(randomize, assert_equal_outputs):
    oracle = randomize(torchvision.models.densenet121())
    pattern = r"(denselayer\d+\.(?:norm|conv))([12])\."
    state = {re.sub(pattern, r"\1.\2.", k): v for k, v in oracle.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    model = create_model("se_densenet121", gate="none")
    load_weights(model, state)
    assert_equal_outputs(model, oracle, 64)


@pytest.mark.slow
def test_torchvisions_auxiliary_classifier_loads_if_the_network_has_one(randomize):
    oracle = randomize(torchvision.models.inception_v3(init_weights=False))
    model = create_model("se_inception_v3", aux=True)
    report = load_weights(model, oracle.state_dict())
    assert torch.equal(model.AuxLogits.fc.weight, oracle.AuxLogits.fc.weight)
    assert report.left_out == {}
    without = load_weights(
        model, {k: v for k, v in oracle.state_dict().items() if "AuxLogits" not in k}
    )
    assert len([key for key in without.kept if key.startswith("AuxLogits.")]) == 14


MMPRETRAIN = [case for case in TIMM if case[0] not in ("senet154", "se_resnet18", "se_resnet34")]
MMPRETRAIN.append(("se_resnet50", "resnet50", {"gate": "none"}))  # a plain one


@pytest.mark.parametrize(("name", "reference", "options"), cases(MMPRETRAIN))
def test_mmpretrains_layout_loads(
    name, reference, options, tmp_path, randomize, assert_equal_outputs
):
    """The file is built from timm's network, whose strides and pool are the same."""
    oracle = randomize(timm.create_model(reference))
    state = {}
    for key, tensor in oracle.state_dict().items():
        key = re.sub(r"\.se\.fc([12])\.", r".se_layer.conv\1.conv.", key)
        state[f"head.{key}" if key.startswith("fc.") else f"backbone.{key}"] = tensor
    path = tmp_path / "mmpretrain.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": state}, path)
    model = create_model(name, **options)
    report = load_weights(model, path)
    assert report.layout == "mmpretrain's"
    assert len(report.renamed) == len(report.loaded) == len(state)
    assert_equal_outputs(model, oracle, 64)


class Linears(nn.Module):
    """The gate of moskomule/senet.pytorch: dense layers without biases, `fc.0` and `fc.2`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class CifarResNet(nn.Module):
    """He et al., section 4.2, with torchvision's blocks and projections between stages."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64)):
            blocks = []
            for _ in range(count):
                down, stride = None, 1
                if channels != width:
                    stride = 2
                    conv = nn.Conv2d(channels, width, 1, stride=2, bias=False)
                    down = nn.Sequential(conv, nn.BatchNorm2d(width))
                blocks.append(BasicBlock(channels, width, stride, down))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def moskomule(plain: nn.Module) -> nn.Module:
    """Put moskomule's gate after the last norm of each block."""
    for block in plain.modules():
        if isinstance(block, Bottleneck):
            block.bn3 = nn.Sequential(block.bn3, Linears(block.bn3.num_features))
        elif isinstance(block, BasicBlock):
            block.bn2 = nn.Sequential(block.bn2, Linears(block.bn2.num_features))
    return plain


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("se_resnet18", torchvision.models.resnet18),
        pytest.param("se_resnet34", torchvision.models.resnet34, marks=pytest.mark.slow),
        ("se_resnet50", torchvision.models.resnet50),
        pytest.param("se_resnet101", torchvision.models.resnet101, marks=pytest.mark.slow),
        pytest.param("se_resnet152", torchvision.models.resnet152, marks=pytest.mark.slow),
        ("se_resnet20", lambda: CifarResNet(3)),
        ("se_resnet32", lambda: CifarResNet(5)),
        ("se_resnet56", lambda: CifarResNet(9)),
    ],
)
@pytest.mark.parametrize("se_bias", [True, False])
@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")
def test_moskomules_layout_loads(name, plain, se_bias, randomize, assert_equal_outputs):
    oracle = randomize(moskomule(plain()))
    state = {
        re.sub(r"\.(bn[23])\.0\.", r".\1.", re.sub(r"\.bn[23]\.1\.", ".se.", key)): tensor
        for key, tensor in oracle.state_dict().items()
    }
    assert any(".se.fc.2.weight" in key for key in state)
    model = create_model(name, se_bias=se_bias)
    report = load_weights(model, state)
    assert report.layout == "moskomule's"
    gates = sum(isinstance(module, Linears) for module in oracle.modules())
    assert len(report.reshaped) == 2 * gates
    assert len(report.zeroed) == (2 * gates if se_bias else 0)
    assert_equal_outputs(model, oracle, 64 if "1000" in str(model.fc) else 32)


@pytest.mark.slow
def test_cadenes_other_name_for_the_head_loads(randomize, assert_equal_outputs):
    oracle = randomize(timm.create_model("inception_resnet_v2"))
    state = {k.replace("classif.", "last_linear."): v for k, v in oracle.state_dict().items()}
    model = create_model("se_inception_resnet_v2", gate="none")
    assert load_weights(model, state).renamed.keys() == {"classif.weight", "classif.bias"}
    assert_equal_outputs(model, oracle, 107)


@pytest.mark.parametrize(
    ("name", "reference", "options", "wanted"),
    [
        ("se_resnet50", "legacy_seresnet50", {}, "stride_in='1x1', ceil_pool=True"),
        ("se_resnet50", "legacy_seresnet50", CAFFE, r"build it with stride_in='1x1'\."),
        ("se_resnet50", "legacy_seresnet50", {"stride_in": "1x1"}, r"with ceil_pool=True\."),
        ("se_resnet18", "legacy_seresnet18", CAFFE, r"with relu_before_gate=True\."),
        ("se_resnext50_32x4d", "legacy_seresnext50_32x4d", {}, r"with ceil_pool=True\."),
        ("se_resnext50_32x4d", "seresnext50_32x4d", CAFFE, r"with ceil_pool=False\."),
        ("se_resnet50", "seresnet50", {"stride_in": "1x1"}, r"with stride_in='3x3'\."),
        ("se_resnet50", "resnet50", {"stride_in": "1x1"}, r"with stride_in='3x3'\."),
        ("se_resnet50", "resnet50", {"stride_in": "1x1", "gate": "none"}, "stride_in='3x3'"),
        ("se_resnet50", "seresnet50", {"squeeze": "max"}, r"with squeeze='avg'\."),
        ("se_resnet50", "seresnet50", {"gate_activation": "tanh"}, "gate_activation='sigmoid'"),
        ("se_resnet50", "seresnet50", {"placement": "post"}, r"with placement='standard'\."),
        ("se_resnet34", "resnet34", {"relu_before_gate": True}, "relu_before_gate=False"),
    ],
)  # fmt: skip
def test_the_wrong_variant_of_the_same_shapes_is_refused(name, reference, options, wanted):
    assert_refused(create_model(name, **options), timm.create_model(reference).state_dict(), wanted)


@pytest.mark.parametrize(
    ("options", "reference", "message"),
    [
        ({}, "seresnet34", "parameters differ, the first is layer"),
        ({}, "resnet34", r"layer1\.2\.conv1\.weight: missing from the model"),
        ({}, "mobilenetv3_small_050", "does not match this model"),
        ({"gate": "none"}, "seresnet18", r"fc1\.weight: missing .*set gate='channel'"),
        ({"stages": [1, 2], "divisor": 8}, "seresnet18", "and all stages"),
        ({}, "seresnet18", r"fc1\.weight: \(8, 64, 1, 1\) in the file and \(4,.*divisor"),
        ({"divisor": 8, "se_bias": False}, "seresnet18", r"set se_bias=True\."),
        ({"gate": "spatial"}, "seresnet18", "Only the gates differ: .*`gate`"),
    ],
)  # fmt: skip
def test_another_networks_weights_are_refused(options, reference, message):
    state = timm.create_model(reference).state_dict()
    assert_refused(create_model("se_resnet18", **options), state, message)


def test_a_network_for_gray_images_equals_the_color_network_on_gray_images(randomize):
    oracle = randomize(timm.create_model("seresnet18"))
    model = create_model("se_resnet18", divisor=8, in_channels=1).eval()
    report = load_weights(model, oracle.state_dict())
    assert report.summed == ["conv1.weight"]
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        actual, expected = model(x), oracle(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("name", ["se_resnet20", "se_densenet40_12", "se_mobilenet"])
def test_color_weights_load_into_other_channels_by_timms_rule(name, channels):
    options = {"ratio": 4}
    oracle, model = (
        create_model(name, in_channels=3, **options),
        create_model(name, in_channels=channels, **options),
    )
    report = load_weights(model, oracle.state_dict())
    (first,) = report.summed if channels == 1 else report.repeated
    expected = timm.models.adapt_input_conv(channels, oracle.state_dict()[first].clone())
    torch.testing.assert_close(model.state_dict()[first], expected, rtol=0, atol=0)
    assert len(report.loaded) == len(model.state_dict())
    assert report.reshaped == []
    assert ("repeated and scaled" in str(report)) == (channels != 1)


@pytest.mark.parametrize(("theirs", "ours"), [(4, 3), (1, 3), (4, 6)])
def test_weights_for_other_channels_than_colors_are_refused(theirs, ours):
    state = create_model("se_resnet20", ratio=4, in_channels=theirs).state_dict()
    message = rf"conv1\.weight: \(16, {theirs}, 3, 3\) .*set in_channels={theirs}\."
    assert_refused(create_model("se_resnet20", ratio=4, in_channels=ours), state, message)


def test_a_checkpoint_of_this_package_loads_into_other_channels(tmp_path):
    source = create_model("se_resnet20", ratio=4)
    content = {"state_dict": source.state_dict(), "se_lightning": {"structure": structure(source)}}
    model = create_model("se_resnet20", ratio=4, in_channels=4)
    assert load_weights(model, content).repeated == ["conv1.weight"]


def test_a_head_of_another_size_is_left_out(randomize):
    oracle = randomize(timm.create_model("seresnet50"))
    model = create_model("se_resnet50", num_classes=7)
    head = model.fc.weight.clone()
    report = load_weights(model, oracle.state_dict())
    assert report.left_out == {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    assert torch.equal(model.fc.weight, head)
    assert "2 left out (fc.weight (1000, 2048), fc.bias (1000,))" in str(report)
    assert torch.equal(model.layer1[0].conv1.weight, oracle.layer1[0].conv1.weight)
    headless = {k: v for k, v in oracle.state_dict().items() if not k.startswith("fc.")}
    assert load_weights(model, headless).kept == ["fc.weight", "fc.bias"]
    model.reset_classifier(0)
    assert load_weights(model, oracle.state_dict()).left_out.keys() == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "wrapping",
    ["module.", "_orig_mod.", "module._orig_mod.", "net.model.", "model._fsdp_wrapped_module."],
)
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state", "params"])
def test_prefixes_and_keys_of_training_scripts_are_removed(wrapping, key, tmp_path, randomize):
    oracle = randomize(timm.create_model("seresnet18"))
    state = {f"{wrapping}{k}": v for k, v in oracle.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "weights.pth.tar")
    model = create_model("se_resnet18", divisor=8)
    load_weights(model, tmp_path / "weights.pth.tar")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in oracle.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state", "net"])
def test_weights_are_found_below_other_keys(key):
    oracle, model = (create_model("se_resnet20", ratio=4) for _ in range(2))
    load_weights(model, {"ema": {"decay": 0.9}, key: {"module": oracle.state_dict()}, "epoch": 3})
    assert torch.equal(model.fc.weight, oracle.fc.weight)


@pytest.mark.parametrize(
    "beside", ["criterion.weight", "classifier.weight", "class_weights", "loss.module.scale"]
)
@pytest.mark.parametrize("prefix", ["net.", "model.", "backbone.", "module.encoder."])
def test_what_a_wrapper_has_beside_the_network_is_left_out(prefix, beside):
    oracle, model = (create_model("se_resnet20", ratio=4) for _ in range(2))
    state = {f"{prefix}{key}": tensor for key, tensor in oracle.state_dict().items()}
    outer = "module." if prefix.startswith("module.") else ""
    report = load_weights(model, {**state, outer + beside: torch.ones(3)})
    assert torch.equal(model.fc.weight, oracle.fc.weight)
    assert report.left_out == {beside: (3,)}


@pytest.mark.parametrize(
    "averaged", ["state_dict_ema", "model_ema", "ema_state_dict", "ema_state", "params_ema"]
)
def test_averaged_or_raw_weights_load(averaged, randomize):
    raw = randomize(create_model("se_resnet20", ratio=4)).state_dict()
    half = {k: v * 0.5 if v.is_floating_point() else v for k, v in raw.items()}
    ema = {f"module.{key}": tensor for key, tensor in half.items()} | {"n_averaged": torch.ones(1)}
    checkpoint = {"state_dict": raw, averaged: ema}
    model = create_model("se_resnet20", ratio=4)
    load_weights(model, checkpoint)
    assert torch.equal(model.fc.weight, raw["fc.weight"] * 0.5)
    load_weights(model, checkpoint, use_ema=False)
    assert torch.equal(model.fc.weight, raw["fc.weight"])


def test_safetensors_in_half_precision_load(tmp_path, randomize):
    oracle = randomize(timm.create_model("seresnet18"))
    state = {k: v.half() if v.is_floating_point() else v for k, v in oracle.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    model = create_model("se_resnet18", divisor=8).to(memory_format=torch.channels_last)
    load_weights(model, str(tmp_path / "model.safetensors"))
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state["conv1.weight"].float())


def test_a_network_of_another_library_loads_its_own_names():
    oracle, model = timm.create_model("seresnet18"), timm.create_model("seresnet18", num_classes=5)
    report = load_weights(model, oracle.state_dict())
    assert report.left_out.keys() == {"fc.weight", "fc.bias"}
    assert torch.equal(model.conv1.weight, oracle.conv1.weight)
    net, plain = (
        torchvision.models.mobilenet_v3_small(num_classes=5),
        torchvision.models.mobilenet_v3_small(),
    )
    assert load_weights(net, plain.state_dict()).left_out.keys() == {
        "classifier.3.weight",
        "classifier.3.bias",
    }


class Code:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def timms_checkpoint(tmp_path, oracle):
    saver = timm.utils.CheckpointSaver(
        oracle,
        torch.optim.SGD(oracle.parameters(), 0.1),
        args=argparse.Namespace(model="seresnet18", lr=0.1, output=tmp_path),
        model_ema=timm.utils.ModelEmaV3(oracle),
        checkpoint_dir=tmp_path,
        recovery_dir=tmp_path,
    )
    saver.save_checkpoint(0, metric=1.0)
    return tmp_path / "model_best.pth.tar"


def lightnings_checkpoint(tmp_path, oracle):
    """As a LightningModule writes it that saved its network and its optimizer's factory."""
    module = LightningModule()
    module.net, module.criterion = oracle, nn.CrossEntropyLoss(torch.ones(1000))
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
    options = OmegaConf.create({"data": {"root": "a"}, "sizes": [1, 2]})
    module.save_hyperparameters({"optimizer": optimizer, "options": options, "net": oracle})
    trainer = Trainer(logger=False, barebones=False, default_root_dir=tmp_path, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    return tmp_path / "x.ckpt"


def older_lightnings_checkpoint(tmp_path, oracle):
    content = {
        "state_dict": {f"model.{key}": tensor for key, tensor in oracle.state_dict().items()},
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float32(0.5)}},
        "hyper_parameters": AttributeDict(root=Path("a"), mean=np.zeros(3)),
    }
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    return tmp_path / "x.ckpt"


@dataclasses.dataclass
class Settings:
    root: Path
    sizes: list[int]


def a_users_checkpoint(tmp_path, oracle):
    content = {
        "model_state": {f"module.{key}": tensor for key, tensor in oracle.state_dict().items()},
        "settings": Settings(Path("a"), [1]),
        "accuracy": [np.float64(0.5), np.int64(3), np.arange(3)],
        "started": datetime.datetime(2026, 1, 1),
        "counts": collections.defaultdict(list, {1: [2]}),
        "last": collections.deque([1, 2], 3),
        "random": (random.getstate(), np.random.get_state()),  # noqa: NPY002 - as scripts do
        "optimizer": torch.optim.SGD(oracle.parameters(), 0.1),
    }
    torch.save(content, tmp_path / "x.pt")
    return tmp_path / "x.pt"


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of `nn.Module`")
@pytest.mark.parametrize(
    "write",
    [timms_checkpoint, lightnings_checkpoint, older_lightnings_checkpoint, a_users_checkpoint],
)
def test_the_weights_of_checkpoints_with_other_objects_load(write, tmp_path, randomize):
    oracle = randomize(timm.create_model("seresnet18"))
    model = create_model("se_resnet18", divisor=8)
    report = load_weights(model, write(tmp_path, oracle))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in oracle.state_dict().items())
    assert set(report.left_out) <= {"criterion.weight"}


def test_a_pickled_network_is_refused_with_the_way_to_save_its_weights(tmp_path):
    model = create_model("se_resnet20", ratio=4)
    for number, content in enumerate((nn.Linear(2, 2), {"model": nn.Linear(2, 2), "epoch": 3})):
        torch.save(content, tmp_path / f"{number}.pth")
        message = r"no state dict but a pickled network.*torch\.save\(network\.state_dict\(\), path"
        assert_refused(model, tmp_path / f"{number}.pth", message)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    model = create_model("se_resnet20", ratio=4)
    torch.save({"args": argparse.Namespace(x=Code(ran)), "model": model.state_dict()}, path)
    assert_refused(model, path, r"could run code \(io\.open\)")
    torch.save({**model.state_dict(), "x": Code(ran)}, path)
    assert_refused(model, path, r"evil\.pth contains more than tensors.* without running any")
    torch.save(Code(ran), path, _use_new_zipfile_serialization=False)
    assert_refused(model, path, "evil")
    assert not ran.exists()


def broken(kind: str, path, model) -> None:
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    save_file(model.state_dict(), path)
    safe = path.read_bytes()
    contents = {
        "empty": b"",
        "a web page": b"\n<!DOCTYPE html><html><body>sign in</body></html>",
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "a cut .pth": whole[: len(whole) // 2],
        "a cut .safetensors": safe[: len(safe) // 2],
        "a cut header": safe[:40],
        "noise": bytes(range(256)) * 8,
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "it is empty"),
        ("a web page", "it is a web page. Download the file itself"),
        ("a pointer of git-lfs", "git lfs pull"),
        ("a cut .pth", "is damaged"),
        ("a cut .safetensors", "safetensors: "),
        ("a cut header", "safetensors: "),
        ("noise", "is damaged"),
    ],
)
def test_a_broken_file_gets_one_message_and_changes_nothing(kind, message, tmp_path):
    model = create_model("se_resnet20", ratio=4)
    broken(kind, tmp_path / "weights.pth", model)
    message = assert_refused(model, tmp_path / "weights.pth", message)
    assert str(tmp_path / "weights.pth") in message


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {},
        {"epoch": 3},
        {"state_dict": {"conv1.weight": 3}},
        ["a"],
        {0: torch.zeros(3)},
        {"se_lightning": 3, "state_dict": {}},
    ],
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    model = create_model("se_resnet20", ratio=4)
    assert_refused(model, tmp_path / "weights.pth", "contains no state dict")


def test_integers_where_weights_should_be_are_refused():
    model = create_model("se_resnet20", ratio=4)
    state = state_of(model)
    state["layer3.2.conv2.weight"] = torch.zeros(64, 64, 3, 3, dtype=torch.int8)
    assert_refused(model, state, r"layer3\.2\.conv2\.weight: .* of torch.int8 in the file")


@pytest.mark.parametrize("name", ["nowhere.pth", "weights/nowhere.safetensors", "nowhere", "a/b/c"])
def test_a_missing_file_is_refused_by_name(name):
    assert_refused(
        create_model("se_resnet20", ratio=4), name, rf"`weights` \(={name}\) is not a file"
    )


def test_a_folder_is_not_taken_for_a_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = create_model("se_resnet20", ratio=4)
    assert_refused(model, "runs/best", r"`weights` \(=runs/best\) is a folder")


def test_two_names_of_one_parameter_are_refused():
    model = create_model("se_resnet20", ratio=4)
    state = state_of(model)
    state["last_linear.weight"] = state["fc.weight"] + 1
    assert_refused(model, state, "mixes layouts")


def test_the_state_dict_of_a_network_with_spatial_gates_loads():
    for gate in ("spatial", "concurrent"):
        source, model = (create_model("se_resnet20", gate=gate, ratio=4) for _ in range(2))
        load_weights(model, source.state_dict())
        assert torch.equal(model.fc.weight, source.fc.weight)


def test_weights_with_folded_gates_load_only_into_a_network_with_folded_gates():
    source, plain, same = (create_model("se_resnet20", ratio=4) for _ in range(3))
    repeat_folds(source, {"layer1.0.se": "identity", "layer3.2.se": "scale"})
    about = {"structure": structure(source), "folded": folded(source)}
    content = {"state_dict": source.state_dict(), "se_lightning": about}
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    with pytest.raises(ValueError, match="2 gates folded away: load the network with"):
        load_weights(plain, content)
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())
    repeat_folds(same, about["folded"])
    load_weights(same, content)
    for key, tensor in source.state_dict().items():
        assert torch.equal(same.state_dict()[key], tensor)
