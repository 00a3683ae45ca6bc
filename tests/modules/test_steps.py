"""A network with one logit: its loss, metrics and predictions are those of a sigmoid."""

import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from se_lightning import FakeDataModule, ImageClassifier, SEInceptionV3Module, SEResNetModule

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(7, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])


def module(network=None, **options):
    found = ImageClassifier(network or nn.Flatten(), 1, **options)
    found.log = found.log_dict = lambda *_, **__: None
    return found


def bce(logits, targets):
    return F.binary_cross_entropy_with_logits(logits.flatten(), targets.float()).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS[:, None], LABELS.to(torch.uint8), LABELS.float(), LABELS[:, None].double()],
    ids=["integers", "a column", "bytes", "floats", "a column of floats"],
)
def test_the_loss_is_the_binary_cross_entropy(labels, smoothing):
    loss = module(label_smoothing=smoothing).training_step((LOGITS, labels), 0)
    targets = LABELS * (1 - smoothing) + smoothing / 2
    assert loss.item() == pytest.approx(bce(LOGITS, targets), rel=1e-6)


def test_mixed_labels_and_auxiliary_classifiers_count():
    share = torch.tensor([0.2, 1, 0.7, 0, 0.5, 0.1, 0.9])
    mixed = torch.stack((1 - share, share), dim=1)
    loss = module().training_step((LOGITS, mixed), 0)
    assert loss.item() == pytest.approx(bce(LOGITS, share), rel=1e-6)

    class TwoHeads(nn.Module):
        def forward(self, x):
            return x, 2 * x

    loss = module(TwoHeads()).training_step((LOGITS, LABELS), 0)
    expected = bce(LOGITS, LABELS) + 0.4 * bce(2 * LOGITS, LABELS)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("labels", [torch.rand(7), torch.rand(7, 1), torch.rand(7, 4)])
def test_labels_of_another_number_of_classes_are_refused(labels):
    model = ImageClassifier(nn.Flatten(), 3)
    for step in (model.training_step, model.validation_step):
        with pytest.raises(
            ValueError, match=r"probabilities of [24] classes, but the network tells 3"
        ):
            step((torch.randn(7, 3), labels), 0)


def test_gradients_are_those_of_the_binary_cross_entropy():
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    module().training_step((ours, LABELS), 0).backward()
    F.binary_cross_entropy_with_logits(theirs.flatten(), LABELS.float()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_metrics_and_predictions_match_scikit_learn(tmp_path):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", **dict.fromkeys(quiet, False)
    )
    data = DataLoader(list(zip(LOGITS[:, :, None, None], LABELS, strict=True)), batch_size=3)
    model = ImageClassifier(nn.Flatten(), 1)
    (found,) = trainer.test(model, data, verbose=False)
    probability = LOGITS.flatten().sigmoid()
    assert found["test/acc1"] == pytest.approx(accuracy_score(LABELS, probability > 0.5))
    assert found["test/loss"] == pytest.approx(log_loss(LABELS, probability), rel=1e-5)
    predictions = torch.cat(trainer.predict(model, data))
    torch.testing.assert_close(predictions, torch.stack((1 - probability, probability), dim=1))


def test_the_network_has_one_output_and_the_module_two_classes(tmp_path):
    model = SEResNetModule(20, ratio=4, num_classes=1, in_channels=3)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 1)
    assert (model.hparams.num_classes, model.num_classes) == (1, 2)
    fit(model, tmp_path, num_classes=2)
    again = SEResNetModule.load_from_checkpoint(tmp_path / "net.ckpt")
    assert again.backbone.fc.out_features == 1
    torch.testing.assert_close(again.backbone.fc.weight, model.backbone.fc.weight)


def test_inceptions_auxiliary_classifier_has_one_logit_too():
    model = SEInceptionV3Module(num_classes=1, aux=True)
    model.log = lambda *_, **__: None
    loss = model.training_step((torch.rand(2, 3, 299, 299), torch.tensor([0, 1])), 0)
    loss.backward()
    assert model.backbone.AuxLogits.fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("outputs", "classes", "message"),
    [
        (1, 3, "has 3 classes, but the network tells 2 apart; set `num_classes` to 3"),
        (3, 2, "has 2 classes, but the network tells 3 apart"),
        (1, 1, "one class, so there is nothing to tell apart"),
        (2, 1, "one class, so there is nothing to tell apart"),
    ],
)
def test_data_of_another_number_of_classes_are_refused(tmp_path, outputs, classes, message):
    model = SEResNetModule(20, ratio=4, num_classes=outputs, in_channels=3)
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=message):
        fit(model, tmp_path, num_classes=classes)


def fit(model, folder, *, num_classes):
    data = FakeDataModule(num_classes=num_classes, size=16, batch_size=8)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pl.callbacks.ModelCheckpoint(folder, "net")],
    )
    trainer.fit(model, datamodule=data)
