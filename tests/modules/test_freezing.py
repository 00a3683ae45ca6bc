"""Frozen parts and their running statistics stay the same bit for bit; the rest learns."""

import pytest
import timm
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import BackboneFinetuning, BaseFinetuning
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule, TorchvisionModule
from se_lightning.models import create_model
from se_lightning.modules.freezing import freeze


def changed(model, folder) -> set[str]:
    """Train two steps; return the keys whose tensors have changed."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=32))
    after = model.state_dict()
    return {
        key.removeprefix("backbone.") for key in before if not torch.equal(before[key], after[key])
    }


def built(**options) -> SEResNetModule:
    torch.manual_seed(0)
    return SEResNetModule(20, ratio=2, in_channels=1, **options)


def test_only_the_classifier_learns(tmp_path):
    assert changed(built(freeze="backbone"), tmp_path) == {"fc.weight", "fc.bias"}


def test_only_the_gates_learn(tmp_path):
    found = changed(built(freeze="all_but_gates"), tmp_path)
    assert found
    assert all(".se." in key for key in found)
    assert "layer1.0.se.fc1.weight" in found


def test_norms_are_frozen_and_the_rest_learns(tmp_path):
    model = built(freeze="norms")
    norms = {
        f"{path}.{key}"
        for path, module in model.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in module.state_dict()
    }
    found = changed(model, tmp_path)
    weights = {key for key in model.backbone.state_dict() if key.endswith("weight")} - norms
    assert found & norms == set()
    assert found >= {key for key in weights if ".se." not in key}


def test_everything_trains_if_nothing_is_frozen(tmp_path):
    found = changed(built(), tmp_path)
    assert "bn1.running_mean" in found
    assert "conv1.weight" in found


def test_frozen_norms_stay_in_eval_mode_after_train():
    model = built(freeze="backbone").eval().train()
    assert not model.backbone.bn1.training
    assert model.backbone.layer1.training
    assert built().backbone.bn1.training


def test_gates_and_classifiers_of_other_libraries_are_found():
    network = timm.create_model("efficientnet_b0", num_classes=3)
    freeze(network, "all_but_gates")
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(trained) == 4 * 16
    assert all(".se." in name for name in trained)
    network = timm.create_model("seresnet18", num_classes=3)
    freeze(network, "backbone")
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["fc.weight", "fc.bias"]


def test_nothing_left_to_train_is_refused():
    for network in (create_model("se_resnet20", gate="none"), nn.Conv2d(1, 1, 1)):
        with pytest.raises(ValueError, match="leaves nothing to train: the network has no gates"):
            freeze(network, "all_but_gates")
    with pytest.raises(ValueError, match=r"`freeze` \(='all'\) must be one of backbone, norms"):
        built(freeze="all")


@pytest.mark.parametrize("what", ["backbone", "all_but_gates"])
def test_freezing_is_restored_from_a_checkpoint(what, tmp_path):
    model = built(freeze=what)
    changed(model, tmp_path)
    assert model.hparams.freeze == what
    model.trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = SEResNetModule.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert again.frozen == what
    assert not again.backbone.conv1.weight.requires_grad


def test_grad_checkpointing_needs_a_network_that_supports_it():
    assert built(grad_checkpointing=True).backbone.grad_checkpointing
    assert not built().backbone.grad_checkpointing
    with pytest.raises(ValueError, match="Linear has no set_grad_checkpointing"):
        ImageClassifier(nn.Linear(2, 2), 2, grad_checkpointing=True)


def test_modules_set_to_eval_mode_stay_in_eval_mode(tmp_path):
    """Lightning keeps the mode of each module, and so does this package if nothing is frozen."""
    network = create_model("se_resnet20", ratio=2, in_channels=1)
    network.layer1.eval()
    model = ImageClassifier(network, 10)
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):
        found = changed(model, tmp_path)
    assert not network.layer1.training
    assert "layer1.0.bn1.running_mean" not in found
    assert "layer2.0.bn1.running_mean" in found


class Look(Callback):
    """Records, after each epoch, which matrices and kernels have changed in it."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: p.clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        changed = {
            name.removeprefix("backbone.")
            for name, p in pl_module.named_parameters()
            if p.ndim > 1 and not torch.equal(p, self.before[name])
        }
        self.changed = [*getattr(self, "changed", []), changed]


class Own(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)


class Stem(BaseFinetuning):
    """Freezes what it says, and not the classifier."""

    def freeze_before_training(self, pl_module):
        self.freeze([pl_module.backbone.conv1, pl_module.backbone.fc])

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


def finetuned(module, callback, folder):
    look = Look()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=2, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[callback, look],
    )  # fmt: skip
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=32))
    matrices = {
        name.removeprefix("backbone.") for name, p in module.named_parameters() if p.ndim > 1
    }
    return look.changed, matrices


@pytest.mark.parametrize(
    "make",
    [
        lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1),
        lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False),
        Own,
    ],
    ids=["lightnings", "norms_frozen", "own"],
)
@pytest.mark.parametrize("network", ["ours", "torchvision"])
def test_finetuning_trains_the_classifier_before_the_rest(tmp_path, make, network):
    torch.manual_seed(0)
    if network == "ours":
        module, head = built(), "fc.weight"
    else:
        module = TorchvisionModule("mobilenet_v3_small", in_channels=1, num_classes=10)
        head = "classifier.3.weight"
    changed, matrices = finetuned(module, make(), tmp_path)
    assert changed[0] == {head}
    assert changed[1] == matrices


def test_finetuning_that_leaves_something_to_train_is_left_alone(tmp_path):
    changed, matrices = finetuned(built(), Stem(), tmp_path)
    assert changed[0] == matrices - {"conv1.weight", "fc.weight"}
