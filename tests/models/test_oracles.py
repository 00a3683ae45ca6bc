"""Networks give the outputs of torchvision's and timm's when weights are copied."""

import re

import pytest
import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from se_lightning.models import SEDenseNet, SEResNet, create_model


@pytest.mark.parametrize(
    ("name", "reference", "pixels"),
    [
        ("se_resnet18", "resnet18", 96),
        ("se_resnet50", "resnet50", 96),
        pytest.param("se_resnet101", "resnet101", 96, marks=pytest.mark.slow),
        ("se_resnext50_32x4d", "resnext50_32x4d", 96),
        pytest.param("se_resnext101_64x4d", "resnext101_64x4d", 96, marks=pytest.mark.slow),
        ("se_densenet121", "densenet121", 96),
        pytest.param("se_densenet161", "densenet161", 96, marks=pytest.mark.slow),
        pytest.param("se_densenet169", "densenet169", 96, marks=pytest.mark.slow),
        pytest.param("se_densenet201", "densenet201", 96, marks=pytest.mark.slow),
        pytest.param("se_vgg16_bn", "vgg16_bn", 64, marks=pytest.mark.slow),
    ],
)
def test_gate_none_equals_torchvision(name, reference, pixels, randomize, assert_equal_outputs):
    oracle = randomize(torchvision.models.get_model(reference))
    model = create_model(name, gate="none")
    assert list(model.state_dict()) == list(oracle.state_dict())
    model.load_state_dict(oracle.state_dict(), strict=True)
    assert_equal_outputs(model, oracle, pixels)


def test_gate_none_equals_torchvisions_wide_resnet50(randomize, assert_equal_outputs):
    oracle = randomize(torchvision.models.wide_resnet50_2())
    model = SEResNet(50, group_width=128, gate="none")
    model.load_state_dict(oracle.state_dict(), strict=True)
    assert_equal_outputs(model, oracle, 64)


def test_densenet264_has_the_shapes_of_torchvisions_class():
    with torch.device("meta"):
        oracle = torchvision.models.DenseNet(32, (6, 12, 64, 48), 64)
        model = SEDenseNet(264, gate="none")
    reference = {key: tensor.shape for key, tensor in oracle.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == reference


@pytest.mark.parametrize("aux", [False, True])
def test_gate_none_equals_torchvisions_inception_v3(aux, randomize, assert_equal_outputs):
    oracle = torchvision.models.inception_v3(aux_logits=aux, init_weights=False)
    model = create_model("se_inception_v3", gate="none", aux=aux)
    assert list(model.state_dict()) == list(randomize(oracle).state_dict())
    model.load_state_dict(oracle.state_dict(), strict=True)
    if not aux:
        assert_equal_outputs(model, oracle, 107)
        return
    for network in (model, oracle):
        network.train()
        network.get_submodule("global_pool.drop" if network is model else "dropout").p = 0.0
    x = torch.randn(2, 3, 299, 299)
    with torch.no_grad():
        for actual, expected in zip(model(x), oracle(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reference", "pixels"),
    [
        ("se_inception_resnet_v2", "inception_resnet_v2", 107),
        ("se_mobilenet", "mobilenetv1_100", 96),
    ],
)
def test_gate_none_equals_timm(name, reference, pixels, randomize, assert_equal_outputs):
    oracle = randomize(timm.create_model(reference))
    model = create_model(name, gate="none")
    assert list(model.state_dict()) == list(oracle.state_dict())
    model.load_state_dict(oracle.state_dict(), strict=True)
    assert_equal_outputs(model, oracle, pixels)


def test_the_wrong_stride_loads_but_gives_other_outputs(randomize, assert_equal_outputs):
    """Strict loading succeeds because the shapes do not depend on the stride."""
    oracle = randomize(timm.create_model("legacy_seresnet50"))
    renamed = {r"^layer0\.": "", r"\.se_module\.": ".se.", "^last_linear": "fc"}
    state = oracle.state_dict()
    for pattern, name in renamed.items():
        state = {re.sub(pattern, name, key): tensor for key, tensor in state.items()}
    right = create_model("se_resnet50", ceil_pool=True, stride_in="1x1")
    wrong = create_model("se_resnet50", ceil_pool=True)
    for model in (right, wrong):
        model.load_state_dict(state, strict=True)
    assert_equal_outputs(right, oracle, 96)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_outputs(wrong, oracle, 96)


# arXiv:1709.01507, Table 2: 1e9 multiply-adds at 224 pixels, plain and with gates.
@pytest.mark.parametrize(
    ("name", "options", "plain", "gated"),
    [
        ("se_resnet50", {"stride_in": "1x1"}, 3.86, 3.87),
        ("se_resnet101", {"stride_in": "1x1"}, 7.58, 7.60),
        ("se_resnet152", {"stride_in": "1x1"}, 11.30, 11.32),
        ("se_resnext50_32x4d", {}, 4.24, 4.25),
        ("se_resnext101_32x4d", {}, 7.99, 8.00),
        ("se_vgg16_bn", {}, 15.47, 15.48),
        ("se_bn_inception", {}, 2.03, 2.04),
        ("se_mobilenet", {}, 0.569, 0.572),  # Table 3
    ],
)
def test_multiply_adds_are_within_a_percent_of_the_papers(name, options, plain, gated):
    counted = multiply_adds(name, 224, **options)
    assert multiply_adds(name, 224, gate="none", **options) == pytest.approx(plain, rel=0.01)
    assert counted == pytest.approx(gated, rel=0.01)


# Figures that do not match the paper's architecture: the actual count and the printed one.
@pytest.mark.parametrize(
    ("name", "pixels", "plain", "gated", "printed"),
    [
        # Equal to timm's network; at the paper's 299 pixels.
        ("se_inception_resnet_v2", 299, 13.156, 13.164, (11.75, 11.76)),
        # Equal to imgclsmob's count of parameters; 1.8 and 2.7 % below Table 3.
        ("se_shufflenet", 224, 0.1375, 0.1381, (0.140, 0.142)),
    ],
)
def test_multiply_adds_that_the_paper_counts_differently(name, pixels, plain, gated, printed):
    found = multiply_adds(name, pixels, gate="none"), multiply_adds(name, pixels)
    assert found == pytest.approx((plain, gated), rel=1e-3)
    assert found != pytest.approx(printed, rel=0.01)


def test_multiply_adds_without_a_squeeze_match_the_paper():
    """Table 16: SE-ResNet-50 takes 4.27, compared with 3.87 with the squeeze."""
    caffe = {"stride_in": "1x1", "se_bias": False}
    added = multiply_adds("se_resnet50", 224, squeeze="none", **caffe)
    assert added == pytest.approx(4.27, rel=0.01)


def multiply_adds(name, pixels, **options) -> float:
    """Count the multiply-adds of a forward pass in 1e9, with torch's counter."""
    with torch.device("meta"):
        model = create_model(name, **options).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, pixels, pixels))
    return counter.get_total_flops() / 2 / 1e9
