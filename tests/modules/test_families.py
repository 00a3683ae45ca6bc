"""One LightningModule per family: plain arguments, and self-contained checkpoints."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import get_type_hints

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import modules
from se_lightning.models import create_model
from se_lightning.modules import ImageClassifier
from se_lightning.modules.classifier import TRAINING_OPTIONS
from se_lightning.modules.families import FamilyModule

# A small member of each family, with non-default options.
MEMBERS = [
    ("SEResNetModule", {"depth": [1, 1], "widths": [8, 16], "placement": "pre", "ratio": [2, 4]}),
    ("SEResNetModule", {"depth": 18, "gate": "concurrent", "merge": "max", "stages": [2, 4]}),
    ("SEResNeXtModule", {"depth": [1, 1], "cardinality": 4, "group_width": 16, "stem": "deep"}),
    ("SENet154Module", {"gate": "none", "ceil_pool": True}),
    ("SEPreActResNetModule", {"depth": 20, "ratio": 4, "literal": True}),
    ("SEWideResNetModule", {"depth": 10, "width_factor": 2, "squeeze": "avgmax"}),
    ("SEShakeShakeModule", {"depth": 8, "width": 16, "ratio": 4, "backward": "even"}),
    ("SEDenseNetModule", {"depth": [2, 2], "growth_rate": 8, "gates_after": "block", "ratio": 4}),
    ("SEInceptionV3Module", {"gate_activation": "tanh"}),
    ("SEInceptionResNetV2Module", {"placement": "identity", "stages": [3]}),
    ("SEBNInceptionModule", {"se_bias": False, "divisor": 8}),
    ("SEVGG16BNModule", {"stages": [1]}),
    ("SEMobileNetModule", {"alpha": 0.25, "gate": "spatial"}),
    ("SEShuffleNetModule", {"groups": 1, "squeeze": "max"}),
    ("SESimpleModule", {"in_channels": 3, "image_size": 80, "residual": True}),
    ("SENestedModule", {"in_channels": 3, "gate_activation": "hard-sigmoid"}),
]
LARGE = ("SENet154Module", "SEVGG16BNModule")  # 15 seconds each, with checkpoints of 0.5 GB


# Modules of other libraries are tested in test_foreign.py.
FAMILIES = set(modules.__all__) - {"ImageClassifier", "TorchvisionModule", "TimmModule"}


def test_every_family_is_tested():
    assert {name for name, _ in MEMBERS} == FAMILIES


@pytest.mark.filterwarnings("ignore:ratio=.* leaves one hidden unit")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(*member, marks=pytest.mark.slow if member[0] in LARGE else ())
        for member in MEMBERS
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_module_trains_in_a_bare_trainer_and_loads_without_arguments(name, options, tmp_path):
    kind = getattr(modules, name)
    # A large step would make the statistics of four images useless.
    gentle = partial(torch.optim.SGD, lr=1e-4)
    model = kind(num_classes=3, label_smoothing=0.1, optimizer=gentle, **options)
    assert issubclass(kind, ImageClassifier)
    images = TensorDataset(torch.randn(4, 3, 80, 80), torch.arange(4) % 3)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, limit_train_batches=1, accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    trainer.fit(model, DataLoader(images, batch_size=4))
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    trainer.save_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    again = kind.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert again.hparams == model.hparams
    assert {"label_smoothing", *options} <= set(again.hparams)
    assert repr(again.backbone) == repr(model.backbone)
    x = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), again.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "options"), MEMBERS, ids=lambda value: str(value)[:30])
def test_an_unknown_argument_is_refused_by_name(name, options):
    with pytest.raises(ValueError, match=r"has no option `ratoi`\. Nearest: ratio"):
        getattr(modules, name)(ratoi=4, **options)


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ({"optimzer": None}, "optimizer"),  # of the training
        ({"label_smothing": 0.1}, "label_smoothing"),
        ({"dropuot": 0.1}, "dropout"),  # of the network
        ({"cardinalty": 32}, "cardinality"),
        ({"placment": "pre"}, "placement"),  # of the gates
        ({"drop_rate": 0.1}, "dropout"),  # timm's name
    ],
)
def test_the_nearest_of_all_options_is_named(options, nearest):
    (name,) = options
    with pytest.raises(
        ValueError, match=rf"SE-ResNet has no option `{name}`\. Nearest: .*{nearest}"
    ):
        modules.SEResNetModule(50, **options)


@pytest.mark.parametrize("kind", ["SEResNetModule", "SEMobileNetModule", "SEDenseNetModule"])
def test_timms_name_of_the_channels_is_taken_with_a_warning(kind):
    with (
        torch.device("meta"),
        pytest.warns(UserWarning, match="`in_chans` is called `in_channels`"),
    ):
        module = getattr(modules, kind)(in_chans=5)
    assert module.backbone.in_channels == module.hparams["in_channels"] == 5
    assert "in_chans" not in module.hparams
    with pytest.raises(ValueError, match="`in_chans` is timm's name of `in_channels`"):
        getattr(modules, kind)(in_chans=1, in_channels=1)


def test_an_unknown_argument_is_also_refused_when_loading_a_checkpoint(tmp_path):
    model = modules.SESimpleModule()
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            max_epochs=0, default_root_dir=tmp_path).fit(model, [0])  # fmt: skip
    model.trainer.save_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="se_simple has no option `ratoi`"):
        modules.SESimpleModule.load_from_checkpoint(tmp_path / "net.ckpt", ratoi=4)
    checkpoint = torch.load(tmp_path / "net.ckpt", weights_only=True)
    del checkpoint["hyper_parameters"]["residual"], checkpoint["hyper_parameters"]["freeze"]
    torch.save(checkpoint, tmp_path / "older.ckpt")  # of a version without these options
    assert (
        modules.SESimpleModule.load_from_checkpoint(tmp_path / "older.ckpt").hparams.freeze is None
    )


POSITIONAL = {
    "SEResNetModule": ["depth", "num_classes"],
    "SEResNeXtModule": ["depth", "num_classes"],
    "SEPreActResNetModule": ["depth", "num_classes"],
    "SEWideResNetModule": ["depth", "width_factor", "num_classes"],
    "SEShakeShakeModule": ["depth", "width", "num_classes"],
    "SEDenseNetModule": ["depth", "num_classes"],
    "TorchvisionModule": ["name", "num_classes"],
    "TimmModule": ["name", "num_classes"],
    "ImageClassifier": ["backbone", "num_classes"],
}


@pytest.mark.parametrize("name", modules.__all__)
def test_signatures_have_the_right_arguments_order_and_types(name):
    kind = getattr(modules, name)
    parameters = inspect.signature(kind).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONAL.get(name, ["num_classes"])
    hints = get_type_hints(kind.__init__)
    for parameter in parameters.values():
        assert hints[parameter.name] == parameter.annotation
    assert name == "ImageClassifier" or parameters["num_classes"].default == 10
    assert set(TRAINING_OPTIONS) <= set(parameters)
    if issubclass(kind, FamilyModule):
        assert hints["ratio"] in (float, float | Sequence[float])


def test_hyper_parameters_are_the_given_arguments_and_structural_defaults():
    with torch.device("meta"):
        hparams = modules.SEWideResNetModule(16, 8, ratio=4, optimizer=torch.optim.SGD).hparams
    training = set(TRAINING_OPTIONS)
    assert {key: value for key, value in hparams.items() if key not in training} == {
        "depth": 16, "width_factor": 8, "num_classes": 10, "in_channels": 3, "ratio": 4,
    }  # fmt: skip
    assert training - set(hparams) == {"optimizer", "lr_scheduler", "weights", "use_ema"}


def test_a_subclass_can_add_arguments():
    class Named(modules.SESimpleModule):
        def __init__(self, title: str, **options):
            super().__init__(**options)

    assert list(inspect.signature(Named).parameters) == ["title", "options"]
    hparams = Named("mine", ratio=4).hparams
    assert (hparams["title"], hparams["ratio"], hparams["image_size"]) == ("mine", 4, 28)


def test_defaults_give_the_published_network():
    """A module without arguments is the published network of its name, with 10 classes."""
    members = {
        "SEResNetModule": "se_resnet50",
        "SEResNeXtModule": "se_resnext50_32x4d",
        "SENet154Module": "senet154",
        "SEPreActResNetModule": "se_preact_resnet50",
        "SEWideResNetModule": "se_wrn16_8",
        "SEShakeShakeModule": "se_shake_shake26_2x96d",
        "SEDenseNetModule": "se_densenet121",
        "SEInceptionV3Module": "se_inception_v3",
        "SEInceptionResNetV2Module": "se_inception_resnet_v2",
        "SEBNInceptionModule": "se_bn_inception",
        "SEVGG16BNModule": "se_vgg16_bn",
        "SEMobileNetModule": "se_mobilenet",
        "SEShuffleNetModule": "se_shufflenet",
        "SESimpleModule": "se_simple",
        "SENestedModule": "se_nested",
    }
    assert set(members) == FAMILIES
    for module, name in members.items():
        with torch.device("meta"):
            backbone = getattr(modules, module)().backbone
            assert repr(backbone) == repr(create_model(name, num_classes=10)), module


def test_an_auxiliary_loss_has_a_weight_of_0_4():
    class TwoHeads(torch.nn.Module):
        def forward(self, x):
            logits = x.flatten(1)
            return (logits, 2 * logits) if self.training else logits

    model = ImageClassifier(TwoHeads(), num_classes=3)
    model.log = lambda *_, **__: None
    images, labels = torch.randn(4, 3, 1, 1), torch.tensor([0, 1, 2, 0])
    loss = torch.nn.functional.cross_entropy
    logits = images.flatten(1)
    expected = loss(logits, labels) + 0.4 * loss(2 * logits, labels)
    torch.testing.assert_close(model.training_step((images, labels), 0), expected)
