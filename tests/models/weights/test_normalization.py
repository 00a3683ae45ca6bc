"""What published weights expect of their images is what timm and torchvision say."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from se_lightning.models import create_model, load_weights
from se_lightning.models.weights.normalization import expected_normalization
from se_lightning.models.weights.structure import classifier_path


def expected(model, config=None):
    return expected_normalization(model, model.state_dict(), classifier_path(model), config or {})


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("se_inception_v3", "inception_v3.tv_in1k"),
        ("se_inception_v3", "inception_v3.tf_in1k"),
        ("se_inception_resnet_v2", "inception_resnet_v2.tf_in1k"),
        ("se_mobilenet", "mobilenetv1_100.ra4_e3600_r224_in1k"),
        ("se_resnet50", "seresnet50.a1_in1k"),
        ("se_resnet50", "legacy_seresnet50.in1k"),
        ("se_densenet121", "densenet121.tv_in1k"),
        ("se_vgg16_bn", "vgg16_bn.tv_in1k"),
        ("senet154", "senet154.gluon_in1k"),
    ],
)
def test_published_weights_of_a_family_expect_what_timm_says(name, tag):
    config = timm.get_pretrained_cfg(tag).to_dict()
    with torch.device("meta"):
        found = expected(create_model(name))
    assert found == (tuple(config["mean"]), tuple(config["std"]))


@pytest.mark.parametrize("name", ["inception_v4", "vit_tiny_patch16_224", "resnet18", "mixnet_s"])
def test_timms_networks_say_it_themselves(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert expected(model) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


@pytest.mark.parametrize(
    ("name", "options", "mean"),
    [
        ("inception_v3", {"init_weights": False}, 0.5),
        ("inception_v3", {"init_weights": False, "transform_input": True}, 0.485),
        ("googlenet", {"init_weights": False}, 0.5),
        ("resnet18", {}, 0.485),
        ("mobilenet_v2", {}, 0.485),
    ],
)
def test_torchvisions_networks_are_known(name, options, mean):
    with torch.device("meta"):
        found = expected(torchvision.models.get_model(name, **options))
    assert found is not None
    assert found.mean[0] == mean


def test_the_file_on_the_hub_decides():
    """timm's inception_v3.gluon_in1k was trained with ImageNet's statistics."""
    config = {"pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    with torch.device("meta"):
        model = create_model("se_inception_v3")
    assert expected(model, config) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_nothing_is_known_of_unpublished_weights():
    with torch.device("meta"):
        assert expected(create_model("se_mobilenet", num_classes=10)) is None
        assert expected(create_model("se_mobilenet", num_classes=10), {"architecture": "x"}) is None
        assert expected(nn.Sequential(nn.Flatten(), nn.Linear(4, 1000))) is None


def test_the_report_of_a_load_has_it_but_not_for_checkpoints_of_this_package():
    options = {"alpha": 0.25, "ratio": 4}
    source, model = (create_model("se_mobilenet", **options) for _ in range(2))
    report = load_weights(model, source.state_dict())
    assert report.normalization == ((0.5,) * 3, (0.5,) * 3)
    content = {"state_dict": source.state_dict(), "se_lightning": {"structure": {}}}
    assert load_weights(model, content).normalization is None
