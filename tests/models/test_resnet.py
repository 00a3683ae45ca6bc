import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning import models
from se_lightning.models import SqueezeExcitation, create_model, list_models


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value at which a mix-up would show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                scale = 0.05 if tensor.ndim > 1 else 0.2
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
                if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
                    tensor.abs_().add_(0.5)
    return model.eval()


# facts: timm 1.0.31's and the official prototxts' totals; torchvision's for the plain twins;
# without SE biases the Keras zoo's counts (SE-ResNet-50, -101). CIFAR: imgclsmob's printed counts.
COUNTS = {
    "se_resnet18": (11_778_592, 11_776_552, 11_689_512),
    "se_resnet34": (21_958_868, 21_954_856, 21_797_672),
    "se_resnet50": (28_088_024, 28_071_976, 25_557_032),
    "se_resnet101": (49_326_872, 49_292_328, 44_549_160),
    "se_resnet152": (66_821_848, 66_770_984, 60_192_808),
    "se_resnext50_32x4d": (27_559_896, 27_543_848, 25_028_904),
    "se_resnext101_32x4d": (48_955_416, 48_920_872, 44_177_704),
    "se_resnet20": (274_847, 274_490, 272_474),
    "se_resnet32": (470_861, 470_266, 466_906),  # by the closed form below
    "se_resnet56": (862_889, 861_818, 855_770),
    "se_resnet110": (1_744_952, 1_742_810, 1_730_714),
}


@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")  # the published r of CIFAR
@pytest.mark.parametrize("name", list_models())
def test_parameter_counts_are_the_published_ones(name):
    biased, unbiased, plain = COUNTS[name]
    with torch.device("meta"):
        assert parameters(create_model(name, ratio=16)) == biased
        assert parameters(create_model(name, ratio=16, se_bias=False)) == unbiased
        assert parameters(create_model(name, gate="none")) == plain


@pytest.mark.parametrize("depth", [20, 32, 56, 110])
def test_cifar_nets_follow_the_closed_form(depth):
    blocks, stages = (depth - 2) // 6, (16, 32, 64)
    total = 3 * 3 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    for stage, width in enumerate(stages):
        before = stages[max(stage - 1, 0)]
        total += 9 * (before + (2 * blocks - 1) * width) * width + 2 * 2 * blocks * width
        total += (before * width + 2 * width) if stage else 0
        total += blocks * (2 * width * (width // 4) + width + width // 4)
    with torch.device("meta"):
        assert parameters(create_model(f"se_resnet{depth}", ratio=4)) == total


@pytest.mark.parametrize(
    ("name", "count"), [("se_resnet18", 11_779_624), ("se_resnet34", 21_960_416)]
)
def test_divisor_8_gives_timms_counts(name, count):
    with torch.device("meta"):
        assert parameters(create_model(name, divisor=8)) == count


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("se_resnet18", "seresnet18", {"divisor": 8}),
        ("se_resnet50", "seresnet50", {}),
        ("se_resnext50_32x4d", "seresnext50_32x4d", {}),
    ],
)
def test_keys_and_outputs_equal_timms(ours, theirs, options):
    oracle = randomise(timm.create_model(theirs))
    model = create_model(ours, **options).eval()
    assert list(model.state_dict()) == list(oracle.state_dict())
    model.load_state_dict(oracle.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward_features(x), oracle.forward_features(x))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("se_resnet50", "resnet50"), ("se_resnext50_32x4d", "resnext50_32x4d")]
)
def test_gate_none_equals_torchvision(ours, theirs):
    oracle = randomise(torchvision.models.get_model(theirs))
    model = create_model(ours, gate="none").eval()
    model.load_state_dict(oracle.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-5, atol=1e-5)


DEEP = ("se_resnet101", "se_resnet152", "se_resnext101_32x4d")


@pytest.mark.filterwarnings("ignore:ratio=16 leaves one hidden unit")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in DEEP else ()) for n in list_models()]
)
def test_every_gate_fires_once_and_every_parameter_learns(name):
    model = create_model(name, num_classes=3, in_channels=2)
    calls = {}
    for path, module in model.named_modules():
        if isinstance(module, SqueezeExcitation):
            calls[path] = 0

            def count(*_, path=path):
                calls[path] += 1

            module.gate.register_forward_hook(count)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.1, 0.5)  # keeps the single hidden units alive
    for path in calls:
        nn.init.uniform_(model.get_submodule(path).fc1.weight, 0.01, 0.1)
    logits = model(torch.randn(4, 2, 64, 64))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert set(calls.values()) == {1}
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_head_features_and_a_new_classifier():
    model = create_model("se_resnet20", ratio=4)
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, model.num_features, 32 // model.reduction, 32 // model.reduction)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(1)(features).flatten(1))
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_an_unknown_name_gets_the_nearest_names():
    with pytest.raises(ValueError, match=r"no model 'se_resnet5'.*se_resnet50"):
        create_model("se_resnet5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "big"}, "`stem`"),
        ({"num_classes": 0}, "`num_classes`"),
        ({"in_channels": 1.5}, "`in_channels`"),
        ({"ratio": 0}, "`ratio`"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("se_resnet20", **options)


def test_groups_need_bottlenecks():
    with pytest.raises(ValueError, match="BasicBlock has no groups"):
        models.se_resnet18(groups=2)
