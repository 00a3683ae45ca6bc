"""Modules that start from weights of other libraries or from this package's checkpoints."""

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

from se_lightning import DigitsDataModule, FakeDataModule, SEResNetModule
from se_lightning.models import load_weights, se_resnet20


def fitted(model, folder, *callbacks):
    """Train four steps and write a checkpoint during training, as runs do."""
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=4, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[*callbacks, ModelCheckpoint(folder, "net")],
    )  # fmt: skip
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=32))
    return folder / "net.ckpt"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    model = SEResNetModule(20, ratio=2, in_channels=1)
    return fitted(model, tmp_path_factory.mktemp("ema"), EMAWeightAveraging(decay=0.5))


@pytest.mark.parametrize("use_ema", [True, False])
def test_averaged_or_raw_weights_of_a_checkpoint_load(averaged, use_ema):
    content = torch.load(averaged, weights_only=True)
    state = content["state_dict" if use_ema else "current_model_state"]
    network = se_resnet20(ratio=2, in_channels=1)
    report = load_weights(network, averaged, use_ema=use_ema)
    assert report.layout == "se_lightning's"
    assert not torch.equal(content["state_dict"]["backbone.fc.weight"],
                           content["current_model_state"]["backbone.fc.weight"])  # fmt: skip
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[f"backbone.{key}"]), key


def test_the_structure_of_a_checkpoint_is_compared_with_the_network(averaged):
    for options, message in [
        (
            {"squeeze": "max"},
            r"layer1\.0\.se is .*squeeze=avg.* in the .*squeeze=max",
        ),
        ({"placement": "post"}, "placement=standard.* in the checkpoint and .*placement=post"),
        (
            {"gate_activation": "tanh"},
            r"layer1\.0\.se\.gate is Sigmoid.* in the .* Tanh",
        ),
    ]:
        network = se_resnet20(ratio=2, in_channels=1, **options)
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_weights(network, averaged)
        assert all(torch.equal(before[key], t) for key, t in network.state_dict().items())


def test_a_plain_checkpoint_loads_into_any_gated_twin(tmp_path):
    path = fitted(SEResNetModule(20, gate="none", in_channels=1), tmp_path)
    for options in ({"squeeze": "max"}, {"placement": "pre"}, {"gate": "spatial"}):
        network = se_resnet20(num_classes=3, ratio=4, in_channels=1, **options)
        report = load_weights(network, path)
        assert report.left_out.keys() == {"fc.weight", "fc.bias"}
        assert all(".se." in key for key in report.kept)


@pytest.mark.filterwarnings("ignore:Images of 32x32")
def test_a_module_starts_from_weights_and_its_checkpoint_does_not_need_the_file(tmp_path):
    oracle = timm.create_model("seresnet18", num_classes=10, in_chans=1)
    torch.save(oracle.state_dict(), tmp_path / "timm.pth")
    model = SEResNetModule(18, divisor=8, in_channels=1, weights=str(tmp_path / "timm.pth"))
    assert torch.equal(model.backbone.conv1.weight, oracle.conv1.weight)
    assert {"weights", "use_ema"} & set(model.hparams) == set()
    path = fitted(model, tmp_path)
    (tmp_path / "timm.pth").unlink()
    again = SEResNetModule.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(again.backbone.conv1.weight, model.backbone.conv1.weight)


def test_freezing_a_new_classifier_causes_a_warning(tmp_path):
    torch.save(timm.create_model("seresnet18").state_dict(), tmp_path / "timm.pth")
    with pytest.warns(UserWarning, match="classifier is random.* never trains it"):
        SEResNetModule(18, 7, divisor=8, weights=str(tmp_path / "timm.pth"), freeze="all_but_gates")


def test_a_checkpoint_for_color_images_loads_into_a_module_for_gray_images(tmp_path):
    source = SEResNetModule(20, ratio=2)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        limit_val_batches=0, callbacks=[ModelCheckpoint(tmp_path, "net")],
    )  # fmt: skip
    trainer.fit(source, datamodule=FakeDataModule(batch_size=8, image_size=32))
    module = SEResNetModule(20, ratio=2, in_channels=1)
    report = load_weights(module, tmp_path / "net.ckpt")
    assert report.summed == ["conv1.weight"]
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        actual, expected = module.eval()(x), source.eval()(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="same shapes: layer1"):
        load_weights(SEResNetModule(20, ratio=2, squeeze="max"), tmp_path / "net.ckpt")
