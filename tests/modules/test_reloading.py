"""Checkpoints that do not fit the options with which they are loaded are refused in words."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from se_lightning import ImageClassifier, SEDenseNetModule, SEMobileNetModule, SEResNetModule

RESNET = {"depth": 20, "ratio": 4, "num_classes": 10, "in_channels": 3}


def saved(module, tmp_path):
    """Write a checkpoint of an untrained module."""
    trainer = Trainer(
        logger=False, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False
    )
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


@pytest.fixture
def resnet(tmp_path):
    torch.manual_seed(0)
    return saved(SEResNetModule(**RESNET), tmp_path)


@pytest.mark.parametrize(
    ("options", "differing", "there"),
    [
        ({"num_classes": 5}, "num_classes=5", "num_classes=10"),
        ({"in_channels": 1}, "in_channels=1", "in_channels=3"),
        ({"depth": 32}, "depth=32", "depth=20"),
        ({"ratio": 8}, "ratio=8", "ratio=4"),
        ({"gate": "none"}, "gate='none'", "gate='its default'"),
        ({"num_classes": 5, "depth": 20}, "num_classes=5", "num_classes=10"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_the_option_that_differs_is_named(options, differing, there, as_text, resnet):
    with pytest.raises(ValueError, match="cannot be loaded with") as raised:
        SEResNetModule.load_from_checkpoint(str(resnet) if as_text else resnet, **options)
    message = str(raised.value)
    name = differing.partition("=")[0]
    assert f"{resnet} cannot be loaded with {differing}: its network has {there}. " in message
    assert f"Leave out `{name}` to rebuild the network as it was trained" in message
    convertible = name in ("num_classes", "in_channels")
    assert (f"SEResNetModule(..., {differing}, weights='{resnet}')" in message) == convertible
    assert "\n" not in message


@pytest.mark.parametrize("options", [{"num_classes": 5}, {"in_channels": 1}, {"in_channels": 4}])
def test_the_advice_can_be_followed(options, resnet):
    module = SEResNetModule(**{**RESNET, **options}, weights=str(resnet))
    source = SEResNetModule.load_from_checkpoint(resnet)
    ours, theirs = (m.backbone.layer3[2].conv2.weight for m in (module, source))
    assert torch.equal(ours, theirs)


def test_gray_weights_are_not_said_to_convert(tmp_path):
    path = saved(SEResNetModule(**{**RESNET, "in_channels": 1}), tmp_path)
    with pytest.raises(ValueError, match=r"in_channels=3 has other weights and must be trained"):
        SEResNetModule.load_from_checkpoint(path, in_channels=3)


def test_without_strict_another_classifier_is_left_out_with_a_warning(resnet):
    source = SEResNetModule.load_from_checkpoint(resnet)
    with pytest.warns(UserWarning, match=r"classifier is left out.*\(10, 64\).*\(5, 64\)"):
        module = SEResNetModule.load_from_checkpoint(resnet, num_classes=5, strict=False)
    assert module.backbone.fc.out_features == module.num_classes == 5
    assert torch.equal(module.backbone.conv1.weight, source.backbone.conv1.weight)
    with pytest.raises(ValueError, match=r"cannot be loaded with ratio=8"):
        SEResNetModule.load_from_checkpoint(resnet, ratio=8, strict=False)


@pytest.mark.parametrize("kind", [SEResNetModule, SEMobileNetModule, ImageClassifier])
def test_the_class_that_wrote_a_checkpoint_is_named(kind, tmp_path):
    path = saved(SEDenseNetModule([2, 2], growth_rate=4, stem="cifar", ratio=2), tmp_path)
    message = f"was written by SEDenseNetModule, and not by {kind.__name__}: load it with"
    with pytest.raises(ValueError, match=message):
        kind.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, r"`ratio` \(=0\)"),
        ({"growth_rate": 3}, "growth_rate"),
        ({"num_classes": -1}, r"`num_classes` \(=-1\)"),
    ],
)
def test_options_that_no_network_has_are_refused_as_ever(options, message, resnet):
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        SEResNetModule.load_from_checkpoint(resnet, **options)
    assert "cannot be loaded with" not in str(raised.value)


def test_a_damaged_or_missing_file_keeps_its_message(tmp_path):
    with pytest.raises(FileNotFoundError):
        SEResNetModule.load_from_checkpoint(tmp_path / "none.ckpt")


def test_another_backbone_is_refused_in_one_line(tmp_path):
    def network(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.Linear(width, 3))

    path = saved(ImageClassifier(network(5), 3), tmp_path)
    message = r"does not fit this ImageClassifier: size mismatch for backbone\.1\.weight"
    with pytest.raises(ValueError, match=message):
        ImageClassifier.load_from_checkpoint(path, backbone=network(6))
    same = ImageClassifier.load_from_checkpoint(path, backbone=network(5))
    assert same.backbone[1].out_features == 5


def test_equal_options_and_lightnings_arguments_still_work(resnet):
    module = SEResNetModule.load_from_checkpoint(
        resnet,
        map_location="cpu",
        weights_only=True,
        strict=True,
        num_classes=10,
        channels_last=False,
    )
    assert not module.channels_last
    again = SEResNetModule.load_from_checkpoint(resnet, "cpu")
    assert torch.equal(again.backbone.fc.weight, module.backbone.fc.weight)
