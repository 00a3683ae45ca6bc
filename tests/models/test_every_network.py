"""Properties of every network, compared with published or calculated numbers."""

import inspect
import re

import pytest
import torch
from torch import nn

from se_lightning import models
from se_lightning.models import create_model, list_models
from se_lightning.models.layers.gates import SpatialExcitation, SqueezeExcitation


def spread(counts, widths):
    """Repeat each stage's width by its number of gates."""
    return [width for count, width in zip(counts, widths, strict=True) for _ in range(count)]


def dense(layers, k, init, keep):
    """Return the widths after each dense block and after each transition."""
    widths, channels = [], init
    for count in layers:
        channels += count * k
        widths.append(channels)
        channels = int(channels * keep)
        widths.append(channels)
    return widths[:-1]


IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
IMAGENET |= {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
CIFAR = {20: (3,) * 3, 32: (5,) * 3, 56: (9,) * 3, 110: (18,) * 3, 164: (18,) * 3}
BASIC, WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)

# The channels of every gate, derived from the papers' tables.
GATES = {}
for kind in ("se_resnet", "se_preact_resnet"):
    GATES |= {f"{kind}{d}": spread(n, BASIC if d < 50 else WIDE) for d, n in IMAGENET.items()}
    GATES |= {f"{kind}{d}": spread(n, (16, 32, 64)) for d, n in CIFAR.items()}
    GATES[f"{kind}164"] = spread((18,) * 3, (64, 128, 256))
GATES |= {
    "se_resnext29_8x64d": spread((3, 3, 3), (256, 512, 1024)),
    "se_resnext50_32x4d": spread(IMAGENET[50], WIDE),
    "se_resnext101_32x4d": spread(IMAGENET[101], WIDE),
    "se_resnext101_64x4d": spread(IMAGENET[101], WIDE),
    "senet154": spread(IMAGENET[152], WIDE),
    "se_wrn16_8": spread((2, 2, 2), (128, 256, 512)),
    "se_wrn28_10": spread((4, 4, 4), (160, 320, 640)),
    "se_wrn40_4": spread((6, 6, 6), (64, 128, 256)),
    "se_densenet121": dense((6, 12, 24, 16), 32, 64, 0.5),
    "se_densenet161": dense((6, 12, 36, 24), 48, 96, 0.5),
    "se_densenet169": dense((6, 12, 32, 32), 32, 64, 0.5),
    "se_densenet201": dense((6, 12, 48, 32), 32, 64, 0.5),
    "se_densenet264": dense((6, 12, 64, 48), 32, 64, 0.5),
    "se_densenet40_12": dense((12,) * 3, 12, 16, 1),
    "se_densenet100_12": dense((32,) * 3, 12, 16, 1),
    "se_densenet100_24": dense((32,) * 3, 24, 16, 1),
    "se_densenet_bc100_12": dense((16,) * 3, 12, 24, 0.5),
    "se_densenet_bc250_24": dense((41,) * 3, 24, 48, 0.5),
    "se_densenet_bc190_40": dense((31,) * 3, 40, 80, 0.5),
    "se_inception_v3": [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048],
    "se_inception_resnet_v2": spread((10, 20, 10), (320, 1088, 2080)),
    "se_bn_inception": [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024],
    "se_vgg16_bn": spread((2, 2, 3, 6), (64, 128, 256, 512)),
    "se_mobilenet": spread((1, 2, 2, 6, 2), (64, 128, 256, 512, 1024)),
    # The first unit of a stage is concatenated to its input: 240 - 24, 480 - 240, 960 - 480.
    "se_shufflenet": [216, *[240] * 4, *[480] * 8, *[960] * 3],
    "se_shake_shake26_2x96d": spread((4, 4, 4), (96, 192, 384)),
    "se_shake_shake29_2x4x64d": spread((3, 3, 3), (256, 512, 1024)),
    "se_simple": [32],
    "se_simple_residual": [32],
    "se_nested": [16, 32, 64],
}


def preact(layers, widths, expansion, classes, imagenet):
    """Count a pre-activation ResNet, layer by layer."""
    channels = widths[0]
    total = 3 * 49 * channels + 2 * channels if imagenet else 3 * 9 * channels
    for stage, (count, width) in enumerate(zip(layers, widths, strict=True)):
        for index in range(count):
            out = width * expansion
            if expansion == 4:
                total += channels * width + 9 * width**2 + width * out
                total += 2 * channels + 2 * 2 * width
            else:
                total += 9 * (channels * width + width**2) + 2 * channels + 2 * width
            if channels != out or (stage and index == 0):
                total += channels * out
            channels = out
    return total + 2 * channels + channels * classes + classes


def wide(depth, k):
    n = (depth - 4) // 6
    total, channels = 3 * 9 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for index in range(n):
            total += 9 * (channels * width + width**2) + 2 * channels + 2 * width
            total += channels * width if index == 0 else 0
            channels = width
    return total + 2 * channels + 10 * channels + 10


def densenet(layers, k, init, bottleneck, keep):
    """Count a CIFAR DenseNet of 10 classes."""
    total, channels = 3 * 9 * init, init
    for block, count in enumerate(layers):
        for _ in range(count):
            if bottleneck:
                total += 2 * channels + channels * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            else:
                total += 2 * channels + 9 * channels * k
            channels += k
        if block < len(layers) - 1:
            total += 2 * channels + channels * int(channels * keep)
            channels = int(channels * keep)
    return total + 2 * channels + 10 * channels + 10


def grouped(stem, widths, blocks, groups, branches, skips_norm_relu, classes):
    """Count ResNeXt-29 (one branch) and Shake-Shake 29 (two): 1x1, grouped 3x3, 1x1."""
    total, channels = 3 * 9 * stem + 2 * stem, stem
    for inner, out in widths:
        for index in range(blocks):
            total += branches * (channels * inner + 9 * inner * inner // groups + inner * out)
            total += branches * (4 * inner + 2 * out)
            total += channels * out + 2 * out if index == 0 else 0
            channels = out
    return total + channels * classes + classes


# Parameters without gates, and the sources of the numbers.
PLAIN = {
    # torchvision and timm print these.
    "se_resnet18": 11_689_512, "se_resnet34": 21_797_672, "se_resnet50": 25_557_032,
    "se_resnet101": 44_549_160, "se_resnet152": 60_192_808,
    "se_resnext50_32x4d": 25_028_904, "se_resnext101_32x4d": 44_177_704,
    "se_resnext101_64x4d": 83_455_272,
    "se_densenet121": 7_978_856, "se_densenet161": 28_681_000, "se_densenet169": 14_149_480,
    "se_densenet201": 20_013_928,
    "se_inception_v3": 23_834_568,  # without the auxiliary head
    "se_vgg16_bn": 138_365_992,
    "se_mobilenet": 4_231_976,  # timm's mobilenetv1_100
    "se_inception_resnet_v2": 55_843_464,  # timm
    # The official prototxts: 115,088,984 and 11,931,622, of which 6,629,040 and 646,398 in gates.
    "senet154": 115_088_984 - 6_629_040, "se_bn_inception": 11_931_622 - 646_398,
    "se_shufflenet": 1_865_728,  # osmr/imgclsmob, shufflenet_g3_w1
    # imgclsmob's printed counts; 32 by He et al.'s table: 0.46M.
    "se_resnet20": 272_474, "se_resnet32": 466_906, "se_resnet56": 855_770,
    "se_resnet110": 1_730_714, "se_resnet164": 1_704_154,
    # The executed Keras builders (trainable, less gates), with the stem's norm and a bias added.
    "se_preact_resnet18": 11_773_760 - 87_040 + 2 * 64 + 1000,
    "se_preact_resnet34": 21_952_064 - 157_184 + 2 * 64 + 1000,
    "se_preact_resnet50": 28_063_296 - 2_514_944 + 2 * 64 + 1000,
    "se_preact_resnet101": preact(IMAGENET[101], BASIC, 4, 1000, imagenet=True),
    "se_preact_resnet152": 66_762_304 - 6_578_176 + 2 * 64 + 1000,
    "se_preact_resnet20": 272_282, "se_preact_resnet56": 855_578,
    "se_preact_resnet110": 1_730_522, "se_preact_resnet164": 1_703_258,
    "se_preact_resnet32": preact(CIFAR[32], (16, 32, 64), 1, 10, imagenet=False),
    # imgclsmob (16-8), Zagoruyko and Komodakis (36.5M), the closed form.
    "se_wrn16_8": 10_961_370, "se_wrn28_10": 36_479_194, "se_wrn40_4": wide(40, 4),
    # The executed Keras builders (40-12, 100-12, BC-100-12), else the closed form.
    "se_densenet40_12": 1_019_722, "se_densenet100_12": 6_979_642,
    "se_densenet100_24": densenet((32,) * 3, 24, 16, bottleneck=False, keep=1),
    "se_densenet_bc100_12": 769_162,
    "se_densenet_bc250_24": densenet((41,) * 3, 24, 48, bottleneck=True, keep=0.5),
    "se_densenet_bc190_40": 25_624_430,
    "se_densenet264": 33_337_704,  # torchvision's class, built with (6, 12, 64, 48): see below
    "se_resnext29_8x64d": grouped(64, ((512, 256), (1024, 512), (2048, 1024)), 3, 8, 1, 0, 10),
    "se_shake_shake26_2x96d": 26_192_922,  # imgclsmob
    "se_shake_shake29_2x4x64d": grouped(64, ((256,) * 2, (512,) * 2, (1024,) * 2), 3, 4, 2, 0, 100),
    "se_simple": 9 * 32 + 32 + 32 + 1 + 784 * 10 + 10, "se_simple_residual": 8_203,
    # Each unit: two 3x3 and two 1x1 with biases, four norms.
    "se_nested": 9 * 16 + 16 + 32 + 64 * 10 + 10 + sum(
        9 * (a + b) * b + 2 * b + 2 * (a * b + b) + 4 * 2 * b
        for a, b in ((16, 16), (16, 32), (32, 64))
    ),
}  # fmt: skip
BIASED = {name for name in GATES if name.startswith(("se_resnet", "se_resnext"))}
BIASED |= {"senet154", "se_bn_inception", "se_nested"}
SMALL = {"se_simple", "se_simple_residual", "se_nested"}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def built(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def size_of(name) -> int:
    """Return the image size of the data set that a network is designed for."""
    if name in SMALL:
        return 28
    if inspect.signature(getattr(models, name)).parameters["num_classes"].default < 1000:
        return 32
    return 299 if name in ("se_inception_v3", "se_inception_resnet_v2") else 224


def test_the_tables_are_complete():
    assert len(list_models()) == 50
    assert sorted(GATES) == sorted(PLAIN) == list_models()


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", list_models())
def test_parameter_counts_match_the_published_ones_at_every_ratio(name):
    assert parameters(built(name, gate="none")) == PLAIN[name]
    for ratio in (2, 4, 8, 16, 32):
        hidden = [max(1, width // ratio) for width in GATES[name]]
        weights = sum(2 * c * h for c, h in zip(GATES[name], hidden, strict=True))
        without = PLAIN[name] + weights
        assert parameters(built(name, ratio=ratio, se_bias=False)) == without
        if ratio == 16:
            biases = sum(GATES[name]) + sum(hidden)
            assert parameters(built(name, ratio=ratio, se_bias=True)) == without + biases
            assert parameters(built(name, ratio=16)) == without + biases * (name in BIASED)
    assert list(models.hidden_widths(built(name, ratio=32)).values()) == hidden


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", list_models())
def test_the_docstring_states_the_parameter_count(name):
    found = re.search(r"([\d,]+) parameters", getattr(models, name).__doc__)
    if found is None:
        assert "parameters" not in getattr(models, name).__doc__
        return
    assert parameters(built(name)) == int(found[1].replace(",", ""))


# Published totals with gates, as they are printed.
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("se_resnet18", {"divisor": 8}, 11_779_624),  # timm seresnet18
        ("se_resnet34", {"divisor": 8}, 21_960_416),  # timm seresnet34
        ("senet154", {}, 115_088_984),  # the official prototxt
        ("se_bn_inception", {}, 11_931_622),  # the official prototxt
        ("se_resnet50", {"num_classes": 10}, 26_059_514),  # timm seresnet50
        ("se_resnet164", {"num_classes": 100}, 1_929_388),  # imgclsmob
        ("se_preact_resnet18", {"literal": True}, 11_773_760),  # the executed Keras builders
        ("se_preact_resnet34", {"literal": True}, 21_952_064),
        ("se_preact_resnet50", {"literal": True}, 28_063_296),
        ("se_preact_resnet152", {"literal": True}, 66_762_304),
        ("se_densenet40_12", {"init_features": 24}, 1_115_266),
        ("se_densenet100_12", {"init_features": 24}, 7_451_266),
        ("se_densenet_bc100_12", {}, 803_938),
        ("se_densenet121", {}, 8_324_968),
        ("se_inception_v3", {}, 25_485_512),
        ("se_inception_resnet_v2", {"placement": "post"}, 65_581_192),
        ("se_mobilenet", {}, 4_711_720),
        ("se_mobilenet", {"alpha": 0.75}, 2_855_416),
        ("se_vgg16_bn", {}, 138_592_296),  # the closed form of the paper's extra weights
        ("se_wrn16_8", {"num_classes": 100}, 11_093_556),
        ("se_simple", {}, 9_227),  # 320 + 1,024 + 33 + 7,850
    ],
)
def test_parameter_counts_match_the_printed_totals(name, options, count):
    assert parameters(built(name, **options)) == count


# Each takes 4 to 10 seconds on two cores, mostly in the backward pass.
DEEP = ("se_densenet100_24", "se_densenet_bc250_24", "se_densenet_bc190_40")


def slow_if(names):
    return [pytest.param(n, marks=pytest.mark.slow if n in names else ()) for n in list_models()]


def count_calls(model):
    """Count how often each gate fires."""
    calls = {}
    for path, module in model.named_modules():
        if isinstance(module, SqueezeExcitation | SpatialExcitation):
            calls[path] = 0

            def count(*_, path=path):
                calls[path] += 1

            module.gate.register_forward_hook(count)
    return calls


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", slow_if(DEEP))
def test_every_gate_fires_once_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, in_channels=2)
    calls = count_calls(model)
    assert len(calls) == len(GATES[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, SqueezeExcitation):
            module.act = nn.LeakyReLU()  # a dead hidden unit would hide a gate that is not wired
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    size = 28 if name in SMALL else max(40, model.min_size)
    x = torch.randn(4, 2, size, size)
    logits = model(x)
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert set(calls.values()) == {1}
    unchanged = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unchanged == []


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", list_models())
def test_shapes_are_right_at_the_size_of_the_data_set(name):
    model, size = built(name), size_of(name)
    x = torch.empty(2, model.in_channels, size, size, device="meta")
    features = model.forward_features(x)
    classes = inspect.signature(getattr(models, name)).parameters["num_classes"].default
    # The first convolutions of the Inceptions have no padding, so each map loses a pixel.
    assert features.shape[2] == (8 if size == 299 else -(-size // model.reduction))
    assert features.shape[1] == model.num_features
    assert model.forward_head(features).shape == (2, classes)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model.forward_head(features).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", list_models())
def test_an_impossible_image_is_refused(name):
    model = built(name).eval()
    with pytest.raises(ValueError, match="`in_channels`"):
        model(torch.empty(1, model.in_channels + 1, 300, 300, device="meta"))
    with pytest.raises(ValueError, match="images"):
        model(torch.empty(model.in_channels, 300, 300, device="meta"))
    smallest = model.image_size or model.min_size
    channels = model.in_channels
    assert model(torch.empty(1, channels, smallest, smallest, device="meta")).ndim == 2
    if smallest == 1:
        return
    small = torch.empty(1, channels, smallest - 1, smallest - 1, device="meta")
    with pytest.raises(ValueError, match=f"{smallest}x{smallest} pixels"):
        model(small)
    model.min_size, model.image_size = 1, None
    with pytest.raises(RuntimeError):  # the bound is tight: torch fails too
        model(small)


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize("name", list_models())
def test_options_of_other_families_are_refused_by_name(name):
    residual = ("resnet", "resnext", "senet154", "wrn", "shake")
    if not any(part in name for part in residual):
        with pytest.raises(ValueError, match="no option `placement`"):
            create_model(name, placement="pre")
    with pytest.raises(ValueError, match=r"`foo`|foo"):
        create_model(name, foo=1)
    wrong = [0] if name.startswith("se_simple") else [0, [16] * 7, "abc", -1]
    for ratio in wrong:
        with pytest.raises(ValueError, match=r"`ratio` \(="):
            create_model(name, ratio=ratio)
    for option in ("gate", "squeeze", "gate_activation", "merge"):
        with pytest.raises(ValueError, match=rf"`{option}` \(='foo'\) must be one of"):
            create_model(name, **{option: "foo"})
    with pytest.raises(ValueError, match=r"`?stages`?"):
        create_model(name, stages=[9])


def test_the_auxiliary_head_has_torchvisions_parameters():
    plain = built("se_inception_v3", gate="none", aux=True)
    assert parameters(plain) == 27_161_264  # torchvision, with its auxiliary head
