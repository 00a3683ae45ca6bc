"""One LightningModule per family: plain arguments, and checkpoints that load alone."""

import inspect
from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import modules
from se_lightning.models import create_model
from se_lightning.modules import ImageClassifier

# A small member of each family, at options of its own; what the builder of that member is called.
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
LARGE = ("SENet154Module", "SEVGG16BNModule")  # 15 seconds each, of checkpoints of 0.5 GB


# Those of other libraries have tests of their own.
FAMILIES = set(modules.__all__) - {"ImageClassifier", "TorchvisionModule", "TimmModule"}


def test_every_family_is_here():
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
def test_it_trains_in_a_bare_trainer_and_loads_alone(name, options, tmp_path):
    kind = getattr(modules, name)
    # A large step would leave weights that four images' statistics do not fit.
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
    with pytest.raises(ValueError, match=r"has no option `ratoi`\. Its gates' options are: ratio"):
        getattr(modules, name)(ratoi=4, **options)


def test_defaults_are_the_published_member():
    """A module without arguments is the net that its name says, with 10 classes."""
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
            ours = getattr(modules, module)().backbone
            assert repr(ours) == repr(create_model(name, num_classes=10)), module


def test_an_auxiliary_loss_counts_0_4():
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


def test_signatures_say_their_arguments():
    for name in modules.__all__:
        parameters = inspect.signature(getattr(modules, name)).parameters
        assert "num_classes" in parameters
        assert "args" not in parameters
