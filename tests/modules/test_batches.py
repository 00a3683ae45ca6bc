"""Batches of other people's data sets, and several loaders at once."""

from collections import UserDict, namedtuple

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from se_lightning import ImageClassifier
from se_lightning.callbacks.checkpointing.exact_state import ExactState
from se_lightning.callbacks.excitation.base import ExcitationCallback
from se_lightning.models import SqueezeExcitation
from se_lightning.modules.batches import images_of, labels_of, pair_of

IMAGES, LABELS = torch.rand(6, 1, 4, 4), torch.tensor([0, 2, 1, 1, 0, 2])
Sample = namedtuple("Sample", "image target")
BATCHES = {
    "pair": (IMAGES, LABELS),
    "list": [IMAGES, LABELS],
    "with extras": (IMAGES, LABELS, ["a.jpg"] * 6, torch.arange(6)),
    "named": Sample(IMAGES, LABELS),
    "datasets": {"image": IMAGES, "label": LABELS},
    "datasets, CIFAR": {"img": IMAGES, "label": LABELS, "id": torch.arange(6)},
    "processors": {"pixel_values": IMAGES, "labels": LABELS},
    "BatchFeature": UserDict({"pixel_values": IMAGES, "labels": LABELS}),
    "timm": {"input": IMAGES, "target": LABELS},
    "WebDataset": {"__key__": ["a"] * 6, "jpg": IMAGES, "cls": LABELS},
    "MedMNIST": (IMAGES, LABELS[:, None]),
    "NumPy's labels": (IMAGES, LABELS.to(torch.int32)),
    "bytes": (IMAGES, LABELS.to(torch.uint8)),
}


@pytest.mark.parametrize("kind", list(BATCHES))
def test_images_and_labels_are_found(kind):
    images, labels = pair_of(BATCHES[kind])
    assert images is IMAGES
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)
    assert images_of(BATCHES[kind]) is IMAGES
    assert labels_of(BATCHES[kind]).flatten().tolist() == LABELS.tolist()


def test_probabilities_stay_and_images_alone_are_enough_to_predict():
    soft = torch.rand(6, 3)
    assert pair_of((IMAGES, soft))[1] is soft
    assert pair_of({"image": IMAGES, "label": soft})[1] is soft
    for batch in (IMAGES, [IMAGES], (IMAGES,), {"image": IMAGES}):
        assert images_of(batch) is IMAGES
        assert labels_of(batch) is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"photo": IMAGES, "label": LABELS}, "keys photo, label has no images"),
        ({"image": IMAGES, "caption": "x"}, "keys image, caption has no labels"),
        (IMAGES, "no labels"),
        ([IMAGES], "no labels"),
    ],
)
def test_a_batch_without_images_or_labels_is_refused_in_words(batch, message):
    with pytest.raises(ValueError, match=message):
        pair_of(batch)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), SqueezeExcitation(4, 2), nn.Flatten(), nn.Linear(16, 3))
    return ImageClassifier(net, 3)


def trainer(tmp_path, *callbacks, **options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"max_epochs": 1, **dict.fromkeys(quiet, False), **options}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **options
    )


@pytest.mark.parametrize("kind", ["with extras", "datasets", "BatchFeature", "MedMNIST"])
def test_every_stage_takes_them(kind, tmp_path):
    net, fit = network(), trainer(tmp_path)
    loader = DataLoader([BATCHES[kind]], batch_size=None)
    fit.fit(net, loader, loader)
    (found,) = fit.test(net, loader, verbose=False)
    logits = net(IMAGES)
    assert found["test/loss"] == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-5)
    assert found["test/acc1"] == pytest.approx((logits.argmax(1) == LABELS).float().mean().item())
    (probabilities,) = fit.predict(net, loader)
    assert torch.allclose(probabilities, logits.softmax(1))


def loaders(count):
    torch.manual_seed(1)
    sets = [[(torch.rand(1, 4, 4), i % 3) for i in range(5 + 3 * n)] for n in range(count)]
    return [DataLoader(samples, batch_size=4) for samples in sets]


def accuracy(net, loader):
    with torch.inference_mode():
        hits = [(net(images).argmax(1) == labels).float() for images, labels in loader]
    return torch.cat(hits).mean().item()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_each_of_several_loaders_has_metrics_of_its_own(stage, count, tmp_path):
    net, given, split = network(), loaders(count), {"validate": "val"}.get(stage, stage)
    for _ in range(2):  # metrics are reset in between
        results = getattr(trainer(tmp_path), stage)(net, given, verbose=False)
        assert len(results) == count
        for index, (result, loader) in enumerate(zip(results, given, strict=True)):
            name = f"{split}/acc1/dataloader_idx_{index}"
            assert result[name] == pytest.approx(accuracy(net, loader))
            assert sorted(result) == [name, f"{split}/loss/dataloader_idx_{index}"]
    (alone,) = getattr(trainer(tmp_path), stage)(net, given[1], verbose=False)
    assert alone[f"{split}/acc1"] == pytest.approx(accuracy(net, given[1]))
    assert len(trainer(tmp_path).predict(net, given)) == count


class Keep(ExcitationCallback):
    samples = 0

    def on_summary(self, trainer, summary):
        self.samples = int(summary.histogram().sum()) // 4  # the gate has 4 channels


@pytest.mark.parametrize("collect", [list, lambda given: dict(zip("abc", given, strict=False))])
def test_callbacks_and_monitors_see_all_loaders_in_training(collect, tmp_path):
    monitor = "val/acc1/dataloader_idx_1"

    def fit(epochs, **options):
        best = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor=monitor, mode="max")
        stop = pl.callbacks.EarlyStopping(monitor, mode="max", patience=9)
        keep, net, given = Keep(), network(), loaders(2)
        callbacks = (keep, best, stop, ExactState())
        run = trainer(tmp_path, *callbacks, max_epochs=epochs, enable_checkpointing=True)
        run.fit(net, loaders(1)[0], collect(given), **options)
        assert keep.samples == 5 + 8
        assert float(run.callback_metrics[monitor]) == pytest.approx(accuracy(net, given[1]))
        assert not any("val_metrics" in key for key in net.state_dict())
        return best.best_model_path, net.state_dict()

    path, _ = fit(1)
    _, resumed = fit(3, ckpt_path=path, weights_only=True)
    _, whole = fit(3)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_loader_without_images_is_refused_by_its_number(tmp_path):
    empty = DataLoader([(IMAGES[:0], LABELS[:0])], batch_size=None)
    with pytest.raises(ValueError, match="No test image was evaluated in loader 1"):
        trainer(tmp_path).test(network(), [loaders(1)[0], empty], verbose=False)


class Log:
    """A logger that keeps what it is given."""

    name, version = "log", 0

    def __init__(self):
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        self.seen |= metrics


def test_a_loop_of_fabric_trains_logs_and_evaluates(tmp_path):
    log = Log()
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, loggers=[log])
    module = network()
    net, optimizer = fabric.setup(module, module.configure_optimizers())
    train, *val = fabric.setup_dataloaders(*loaders(3))
    before = [p.clone() for p in module.parameters()]
    for index, batch in enumerate(train):
        fabric.backward(net.training_step(batch, index))
        optimizer.step()
        optimizer.zero_grad()
    net.on_train_epoch_end()
    assert any(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert {"train/loss", "train/acc1"} <= log.seen.keys()
    for _ in range(2):
        log.seen.clear()
        for number, loader in enumerate(val):
            for index, batch in enumerate(loader):
                net.validation_step(batch, index, number)
        net.on_validation_epoch_end()
        assert log.seen["val/acc1"] == pytest.approx(accuracy(module, val[0]))
        assert log.seen["val/acc1/dataloader_idx_1"] == pytest.approx(accuracy(module, val[1]))
