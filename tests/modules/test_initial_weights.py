"""Weights that expect other pixels than those of the data are reported."""

import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from pytorch_lightning import Trainer

from se_lightning import FakeDataModule, ImageClassifier, SEMobileNetModule, SEResNetModule
from se_lightning.models import LoadReport, create_model
from se_lightning.models.weights.normalization import Normalization
from se_lightning.modules.initial_weights import warn_of_other_normalization

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CLIP = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))


@pytest.mark.parametrize(
    ("weights", "data", "warns"),
    [
        (HALF, IMAGENET, True),
        (IMAGENET, HALF, True),
        (HALF, CIFAR, True),
        (IMAGENET, (0.1307, 0.3081), True),
        (HALF, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), True),
        (HALF, HALF, False),
        (HALF, (0.5, 0.5), False),
        (IMAGENET, IMAGENET, False),
        (IMAGENET, CIFAR, False),
        (IMAGENET, CLIP, False),
        (None, IMAGENET, False),
        (HALF, (None, None), False),
    ],
)
def test_other_statistics_give_a_warning(weights, data, warns):
    report = LoadReport("x", "timm's", normalization=weights and Normalization(*weights))
    datamodule = SimpleNamespace(mean=data[0], std=data[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_other_normalization(report, datamodule)
    assert bool(caught) == warns
    if warns and weights == HALF:
        message = str(caught[0].message)
        assert message.startswith("The weights expect images normalized with mean 0.5 and std 0.5")


def quiet_trainer(tmp_path):
    return Trainer(
        logger=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        limit_val_batches=1,
        enable_progress_bar=False,
    )


def published_mobilenet():
    return SEMobileNetModule(
        alpha=0.125,
        ratio=4,
        num_classes=10,
        weights=create_model("se_mobilenet", alpha=0.125, ratio=4).state_dict(),
    )


def timms_mobilenet():
    oracle = timm.create_model("mobilenetv1_100")
    backbone = timm.create_model("mobilenetv1_100", num_classes=10)
    return ImageClassifier(backbone, 10, weights=oracle.state_dict())


@pytest.mark.parametrize("build", [published_mobilenet, timms_mobilenet])
def test_a_run_warns_once(build, tmp_path):
    module, data = build(), FakeDataModule(image_size=32, num_classes=10)
    data.mean, data.std = IMAGENET
    with pytest.warns(UserWarning, match=r"mean 0\.5 and std 0\.5, but FakeDataModule normal"):
        quiet_trainer(tmp_path).validate(module, data, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The weights expect")
        quiet_trainer(tmp_path).validate(module, data, verbose=False)


def test_a_run_without_weights_or_with_those_of_the_data_does_not_warn(tmp_path):
    data = FakeDataModule(image_size=32, num_classes=10)
    data.mean, data.std = HALF
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The weights expect")
        for module in (published_mobilenet(), SEResNetModule(20, ratio=4)):
            quiet_trainer(tmp_path).validate(module, data, verbose=False)
    assert torch.is_tensor(module.backbone.fc.weight)
