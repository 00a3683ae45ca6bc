import inspect
from functools import partial

import pytest
import safetensors.torch
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import (
    DigitsDataModule,
    ImageClassifier,
    SEPreActResNetModule,
    SEResNetModule,
    SEResNeXtModule,
)
from se_lightning.modules.optim import cosine


def loader(size=12, classes=10, channels=3, pixels=32):
    images = torch.randn(size, channels, pixels, pixels)
    return DataLoader(TensorDataset(images, torch.arange(size) % classes), batch_size=4)


def trainer(folder, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


@pytest.mark.parametrize("kind", [SEResNetModule, SEResNeXtModule])
def test_a_module_trains_in_a_bare_trainer_with_a_custom_loader(kind, tmp_path):
    model = kind(depth=50, ratio=16, num_classes=10)
    before = model.backbone.layer4[2].se.fc1.weight.clone()
    trainer(tmp_path, limit_train_batches=1).fit(model, loader(pixels=64))
    assert not torch.equal(before, model.backbone.layer4[2].se.fc1.weight)


def test_a_checkpoint_loads_without_arguments_and_with_weights_only(tmp_path):
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    model = SEResNetModule(
        20, 7, ratio=8, label_smoothing=0.1, optimizer=adamw, lr_scheduler=cosine
    )
    fitted = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, "net")])
    fitted.fit(model, loader(classes=7))
    path = tmp_path / "net.ckpt"
    content = torch.load(path, weights_only=True)
    assert "optimizer" not in content["hyper_parameters"]
    again = SEResNetModule.load_from_checkpoint(path, weights_only=True)
    assert again.hparams.label_smoothing == 0.1
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), again.eval()(x), rtol=0, atol=0)


def test_a_custom_backbone_is_passed_again_when_loading(tmp_path):
    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))

    model = ImageClassifier(net(), num_classes=5)
    fitted = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, "net")])
    fitted.fit(model, loader(classes=5))
    again = ImageClassifier.load_from_checkpoint(tmp_path / "net.ckpt", backbone=net())
    torch.testing.assert_close(again.backbone[1].weight, model.backbone[1].weight)


class FixedLogits(nn.Module):
    """Returns the image itself as logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.flatten(1) + self.unused


def test_accuracies_and_losses_match_a_hand_calculation(tmp_path):
    # 5 samples, 6 classes; the label's rank among the logits is 1, 1, 2, 5, 6.
    labels = torch.tensor([0, 1, 2, 3, 4])
    ranks = [1, 1, 2, 5, 6]
    logits = torch.zeros(5, 6)
    for row, (label, rank) in enumerate(zip(labels, ranks, strict=True)):
        others = [k for k in range(6) if k != label]
        order = [*others[: rank - 1], int(label), *others[rank - 1 :]]
        logits[row, order] = torch.arange(6, 0, -1).float()
    data = DataLoader(TensorDataset(logits.view(5, 6, 1, 1), labels), batch_size=2)
    model = ImageClassifier(FixedLogits(), num_classes=6, label_smoothing=0.3)
    (found,) = trainer(tmp_path).test(model, data, verbose=False)
    assert found["test/acc1"] == pytest.approx(2 / 5)
    assert found["test/acc5"] == pytest.approx(4 / 5)
    # Label smoothing is used only in training.
    expected = (-logits.log_softmax(1)[torch.arange(5), labels]).mean()
    assert found["test/loss"] == pytest.approx(expected.item())


def test_a_perfect_first_batch_does_not_merge_top1_with_top5(tmp_path):
    right = 9.0 * torch.nn.functional.one_hot(torch.arange(4), 6)
    second = torch.tensor([[8.0, 9, 7, 6, 5, 4]] * 4)  # label 0 comes second
    data = DataLoader(
        TensorDataset(
            torch.cat([right, second]).view(8, 6, 1, 1), torch.tensor([0, 1, 2, 3] + [0] * 4)
        ),
        batch_size=4,
    )
    (found,) = trainer(tmp_path).test(ImageClassifier(FixedLogits(), 6), data, verbose=False)
    assert (found["test/acc1"], found["test/acc5"]) == (0.5, 1.0)


def test_five_classes_have_no_top5(tmp_path):
    data = DataLoader(TensorDataset(torch.randn(4, 5, 1, 1), torch.arange(4)), batch_size=2)
    (found,) = trainer(tmp_path).test(ImageClassifier(FixedLogits(), 5), data, verbose=False)
    assert set(found) == {"test/loss", "test/acc1"}


def test_label_smoothing_is_in_the_training_loss():
    model = ImageClassifier(FixedLogits(), num_classes=6, label_smoothing=0.3)
    logits, labels = torch.randn(4, 6), torch.arange(4)
    log_probability = logits.log_softmax(1)
    hard = -log_probability[torch.arange(4), labels].mean()
    expected = 0.7 * hard + 0.3 * -log_probability.mean()
    model.log = model.log_dict = lambda *_, **__: None
    loss = model.training_step((logits.view(4, 6, 1, 1), labels), 0)
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_spans_the_run_under_accumulation(tmp_path, accumulate):
    model = SEResNetModule(
        20, ratio=4, optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=cosine
    )
    logger = CSVLogger(tmp_path, name="", version="")
    fitted = trainer(
        tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1,
        accumulate_grad_batches=accumulate, callbacks=[LearningRateMonitor("step")],
    )  # fmt: skip
    fitted.fit(model, loader(16))
    assert fitted.global_step == 8 // accumulate
    assert model.lr_schedulers().get_last_lr()[0] == pytest.approx(0.0, abs=1e-7)


def test_a_schedule_without_total_steps_advances_per_epoch(tmp_path):
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    model = SEResNetModule(
        20, ratio=4, optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=step
    )
    trainer(tmp_path, max_epochs=2).fit(model, loader(8))
    assert model.lr_schedulers().get_last_lr() == [0.25]


def test_norms_and_biases_can_be_exempt_from_weight_decay():
    model = SEResNetModule(20, ratio=4, decay_norm_bias=False)
    groups = model.configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


@pytest.mark.parametrize("classes", [5, 1000])
def test_a_data_set_with_another_number_of_classes_is_refused(classes, tmp_path):
    model = SEResNetModule(20, ratio=4, num_classes=classes, in_channels=1)
    with pytest.raises(MisconfigurationException, match=f"but the network tells {classes} apart"):
        trainer(tmp_path).fit(model, datamodule=DigitsDataModule())


def test_a_last_map_of_one_pixel_causes_a_warning(tmp_path):
    model = SEResNetModule(18, in_channels=1)
    fitted = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match="32x32 pixels leave a last feature map of 1x1"):
        fitted.fit(model, datamodule=DigitsDataModule(batch_size=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes`"),
        ({"label_smoothing": 1.0}, "`label_smoothing`"),
        ({"depth": 19}, r"no SE-ResNet of depth 19\. Use one of 18, 20, .*152"),
        ({"ratio": 0}, "`ratio`"),
        ({"ratoi": 4}, "SE-ResNet has no option `ratoi`. Nearest: ratio"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SEResNetModule(**{"depth": 20, "ratio": 4, **options})


lbfgs = partial(torch.optim.LBFGS, max_iter=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SEResNetModule(20, ratio=4, in_channels=1, optimizer=lbfgs),
        lambda: SEPreActResNetModule(20, ratio=4, in_channels=1, optimizer=lbfgs),
        lambda: ImageClassifier(
            nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
            ),
            10,
            optimizer=lbfgs,
        ),
    ],
    ids=["resnet", "preact", "own"],
)
def test_parameters_can_be_flattened(tmp_path, make):
    module = make()
    fitted = Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    fitted.fit(module, DigitsDataModule(batch_size=8))
    vector = nn.utils.parameters_to_vector(module.parameters())
    assert vector.numel() == sum(parameter.numel() for parameter in module.parameters())
    nn.utils.vector_to_parameters(vector * 2, module.parameters())
    safetensors.torch.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    saved = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in module.state_dict().items())


def test_channels_last_changes_the_layout_and_not_the_result():
    torch.manual_seed(0)
    fast = SEResNetModule(20, ratio=4).eval()
    slow = SEResNetModule(20, ratio=4, channels_last=False).eval()
    slow.load_state_dict(fast.state_dict())
    layouts = []
    for module in (fast, slow):
        module.backbone.layer1.register_forward_hook(
            lambda m, i, o: layouts.append(o.is_contiguous(memory_format=torch.channels_last))
        )
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fast(x), slow(x), rtol=1e-4, atol=1e-5)
    assert layouts == [True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_stays_finite_on_a_gpu(precision, tmp_path):
    model = SEResNetModule(50, num_classes=10)
    fitted = trainer(tmp_path, accelerator="gpu", devices=1, precision=precision, max_epochs=3)
    fitted.fit(model, loader(32, pixels=64))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_mixed_labels_are_right_in_loss_and_metrics(tmp_path):
    """Oracle: the mixup paper's lam * loss(a) + (1 - lam) * loss(b), and the same of accuracy."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = ImageClassifier(net, 4, label_smoothing=0.1, channels_last=False)
    images, first, second = torch.randn(6, 3, 2, 2), torch.arange(6) % 4, torch.arange(6) % 3
    mixed = 0.7 * nn.functional.one_hot(first, 4) + 0.3 * nn.functional.one_hot(second, 4)
    logits = model(images)
    losses = [
        nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        for labels in (first, second)
    ]
    correct = [(logits.argmax(1) == labels).float().mean() for labels in (first, second)]
    fitted = trainer(tmp_path)
    # A learning rate of zero, so that the logged figures belong to the weights above.
    model.optimizer = partial(torch.optim.SGD, lr=0.0)
    fitted.fit(model, DataLoader(TensorDataset(images, mixed), batch_size=6))
    found = fitted.callback_metrics
    assert "train/acc1" not in found
    torch.testing.assert_close(found["train/loss"], 0.7 * losses[0] + 0.3 * losses[1])
    torch.testing.assert_close(found["train/acc1_mixed"], 0.7 * correct[0] + 0.3 * correct[1])


def test_mixup_trains_and_leaves_validation_unmixed(tmp_path):
    data = DigitsDataModule(mixup=0.2, cutmix=1.0)
    fitted = trainer(tmp_path, limit_train_batches=3, limit_val_batches=1)
    fitted.fit(SEResNetModule(20, 10, ratio=4, in_channels=1), data)
    assert {"train/acc1_mixed", "val/acc1", "val/acc5"} <= set(fitted.callback_metrics)
    assert "train/acc1" not in fitted.callback_metrics


def test_a_model_can_be_validated_before_it_is_trained(tmp_path):
    """Validation creates inference tensors, which a metric cannot change in place later."""
    model, data = SEResNetModule(20, ratio=4, in_channels=1), DigitsDataModule(batch_size=64)
    fitted = trainer(tmp_path, limit_train_batches=1, enable_checkpointing=False)
    (before,) = fitted.validate(model, data, verbose=False)
    fitted.fit(model, datamodule=data)
    (after,) = fitted.validate(model, data, verbose=False)
    assert before.keys() == after.keys()


def test_a_checkpoint_has_only_the_arguments_of_the_constructor(tmp_path):
    """A callback that adds a hyper-parameter must not make the checkpoint useless."""
    model = SEResNetModule(20, ratio=4, in_channels=1)
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=0, **options)
    trainer.fit(model, DigitsDataModule())
    model.hparams["when"] = 3
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "x.ckpt")["hyper_parameters"]
    assert "when" not in saved
    assert saved["ratio"] == 4


class Echo(nn.Module):
    """Return the images as logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.flatten(1)


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_one_hot_labels_are_evaluated_like_their_indices(classes, tmp_path):
    labels = torch.arange(3 * classes) % classes
    logits = 5 * nn.functional.one_hot(labels, classes).float()
    logits[:2] += torch.randn(2, classes, generator=torch.manual_seed(0)) * 9
    targets = {"index": labels, "one-hot": nn.functional.one_hot(labels, classes).float()}
    found = {}
    for name, target in targets.items():
        data = DataLoader(TensorDataset(logits.view(-1, 1, 1, classes), target), batch_size=4)
        model = ImageClassifier(Echo(), classes, channels_last=False)
        (found[name],) = trainer(tmp_path).validate(model, data, verbose=False)
    assert found["one-hot"] == pytest.approx(found["index"])
    right = (logits.argmax(1) == labels).float().mean()
    assert found["one-hot"]["val/acc1"] == pytest.approx(float(right))


def test_the_loss_of_soft_labels_is_their_cross_entropy(tmp_path):
    logits, targets = torch.randn(8, 3), torch.rand(8, 3).softmax(1)
    data = DataLoader(TensorDataset(logits.view(-1, 1, 1, 3), targets), batch_size=5)
    model = ImageClassifier(Echo(), 3, channels_last=False)
    (found,) = trainer(tmp_path).test(model, data, verbose=False)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert found["test/loss"] == pytest.approx(float(expected), rel=1e-6)
    right = (logits.argmax(1) == targets.argmax(1)).float().mean()
    assert found["test/acc1"] == pytest.approx(float(right))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_of_no_image_is_refused(split, tmp_path):
    class Empty(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, _):
            return torch.zeros(0, 1, 1, 3), torch.zeros(0, dtype=torch.int64)

    model = ImageClassifier(Echo(), 3, channels_last=False)
    evaluate = getattr(trainer(tmp_path), "validate" if split == "val" else split)
    with pytest.raises(ValueError, match=f"No {split} image was evaluated"):
        evaluate(model, DataLoader(Empty(), batch_size=None), verbose=False)


class Strict(torch.nn.Module):
    """A backbone that takes contiguous images only."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3 * 8 * 8, 10)

    def forward(self, x):
        return self.fc(x.view(len(x), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_a_backbone_of_ones_own_keep_their_layout(dtype):
    model = ImageClassifier(Strict(), 10).to(dtype)
    assert model(torch.randn(2, 3, 8, 8, dtype=dtype)).shape == (2, 10)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        ImageClassifier(Strict(), 10, channels_last=True)(torch.randn(2, 3, 8, 8))
    assert SEResNetModule(20, ratio=4).channels_last
    assert not SEResNetModule(20, ratio=4, channels_last=False).channels_last
    assert inspect.signature(SEResNetModule).parameters["channels_last"].default is True
