"""Networks of torchvision and timm as LightningModules."""

import sys
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models import ResNet18_Weights

from se_lightning import TimmModule, TorchvisionModule
from se_lightning.models import find_gates


def test_torchvisions_weights_load_by_name(monkeypatch):
    oracle = torchvision.models.resnet18()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *a, **k: oracle.state_dict())
    module = TorchvisionModule("resnet18", 5, add_gates="residual", weights="IMAGENET1K_V1")
    assert torch.equal(module.backbone.conv1.weight, oracle.conv1.weight)
    assert module.backbone.fc.out_features == 5
    assert len(find_gates(module.backbone)) == 8
    assert "weights" not in module.hparams


def test_without_a_connection_the_message_has_the_address(monkeypatch):
    def refuse(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", refuse)
    with pytest.raises(ValueError, match=r"Download https://.*resnet18-.*\.pth on a machine"):
        TorchvisionModule("resnet18", weights="DEFAULT")


@pytest.mark.parametrize("kind", [TorchvisionModule, TimmModule])
def test_options_are_checked_with_and_without_inserted_gates(kind):
    for where in (None, "residual"):
        with pytest.raises(ValueError, match="Module has no option `placement`"):
            kind("resnet18", add_gates=where, placement="pre")
        with pytest.raises(ValueError, match="`ratio`"):
            kind("resnet18", add_gates=where, ratio=0)
    with pytest.raises(ValueError, match=r"`name` .*Nearest: resnet"):
        kind("resnet19")
    with pytest.raises(ValueError, match="`layer_decay`"):
        kind("resnet18", layer_decay=2.0)


def test_gray_images_and_auxiliary_classifiers_are_supported():
    module = TorchvisionModule("inception_v3", 7, in_channels=1)
    logits, auxiliary = module(torch.randn(2, 1, 299, 299))
    assert logits.shape == auxiliary.shape == (2, 7)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r'pip install "se-lightning\[timm\]"'):
        TimmModule("resnet18")
