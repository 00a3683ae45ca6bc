"""A plain loop, Lightning with or without the datamodule, and Fabric see the same batches."""

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch

from se_lightning.data.transforms.on_device import ImageBatch

KINDS = ["digits", "fake", "mnist", "cifar", "image_folder", "imagenet"]
pytestmark = pytest.mark.filterwarnings("ignore:Only 3 of ImageNet's 1000 classes")


@pytest.fixture
def transferred(monkeypatch):
    """Return the list of images as they are before each transfer."""
    found, to = [], ImageBatch.to
    monkeypatch.setattr(
        ImageBatch, "to", lambda batch, *args: (found.append(batch.images), to(batch, *args))[1]
    )
    return found


class Recorder(pl.LightningModule):
    """A module of another project, which records its batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen["train"].append((images, labels))
        return self.layer(images.mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.seen["val"].append((images, labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(quiet, False), **options}
    return pl.Trainer(num_sanity_val_steps=0, default_root_dir=tmp_path, **options)


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for (x, y), (u, v) in zip(found, expected, strict=True):
        assert x.dtype == u.dtype == torch.float32
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", KINDS)
def test_a_plain_loop_and_a_trainer_see_the_same_tensors(
    make, name, workers, tmp_path, transferred
):
    data = make(name)
    loops = {"train": [], "val": []}
    for images, labels in data.train_dataloader():
        assert images.shape[1:] == (data.in_channels, data.image_size, data.image_size)
        assert labels.shape == (len(images), data.num_classes)  # mixed
        loops["train"].append((images, labels))
    for images, labels in data.val_dataloader():
        assert images.dtype == torch.float32
        assert labels.shape == (len(images),)
        loops["val"].append((images, labels))

    transferred.clear()
    attached = Recorder()
    trainer(tmp_path).fit(attached, datamodule=make(name, num_workers=workers))
    loaders = make(name, num_workers=workers)
    bare = Recorder()
    trainer(tmp_path).fit(bare, loaders.train_dataloader(), loaders.val_dataloader())
    assert len(transferred) == 2 * sum(map(len, loops.values()))
    assert {images.dtype for images in transferred} == {torch.uint8}
    for module in (attached, bare):
        for split, expected in loops.items():
            assert_same(module.seen[split], expected)

    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(make(name).train_dataloader())
    assert_same([(images, labels) for images, labels in loader], loops["train"])
    moved = [batch.to("cpu") for batch in make(name).train_dataloader()]
    assert_same(moved, loops["train"])


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_a_batch_is_a_pair_and_lightnings_hooks_may_be_called_by_hand(make, name):
    data = make(name)
    batch = next(iter(data.train_dataloader()))
    images, labels = batch
    assert len(batch) == 2
    assert batch[0] is images
    assert batch[-1] is labels
    again = data.on_after_batch_transfer(batch, 0)
    assert_same([again], [batch])
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert_same([data.on_after_batch_transfer(moved, 0)], [batch])


@pytest.mark.parametrize("name", ["digits", "image_folder"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_the_precision_of_the_trainer_reaches_the_batches(make, name, precision, dtype, tmp_path):
    expected = list(make(name).train_dataloader())
    for as_datamodule in (True, False):
        data, module = make(name), Recorder()
        given = (
            {"datamodule": data}
            if as_datamodule
            else {"train_dataloaders": data.train_dataloader()}
        )
        trainer(tmp_path, precision=precision).fit(module, **given)
        for (x, y), (u, v) in zip(module.seen["train"], expected, strict=True):
            assert torch.equal(x, u.to(dtype))
            assert torch.equal(y, v.to(dtype))


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_overfit_batches_takes_the_datamodule_and_its_loader(make, name, tmp_path):
    module = Recorder()
    fit = trainer(tmp_path, overfit_batches=2)
    fit.fit(module, datamodule=make(name))
    expected = list(make(name).train_dataloader())[:2]
    assert_same(module.seen["train"], expected)

    bare = Recorder()  # Lightning replaces the sampler
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        trainer(tmp_path, overfit_batches=2).fit(bare, make(name).train_dataloader())
    assert [x.shape for x, _ in bare.seen["train"]] == [x.shape for x, _ in expected]


class Predictions(pl.callbacks.BasePredictionWriter):
    def __init__(self):
        super().__init__("batch")
        self.indices = []

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, *_):
        self.indices.append(batch_indices)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", [*KINDS, "shards"])
def test_predicting_and_testing_take_the_datamodule_and_its_loaders(make, name, workers, tmp_path):
    expected = list(make(name).test_dataloader())
    count = sum(len(labels) for _, labels in expected)
    module, data = Recorder(), make(name, num_workers=workers)
    module.predict_step = lambda batch, batch_idx: batch
    for given in (
        {"datamodule": data},
        {"dataloaders": make(name, num_workers=workers).test_dataloader()},
        {"dataloaders": make(name, num_workers=workers).predict_dataloader()},
    ):
        writer = Predictions()
        assert_same(trainer(tmp_path, callbacks=[writer]).predict(module, **given), expected)
        assert [i for batch in writer.indices for i in batch] == list(range(count))
    for given in ({"datamodule": data}, {"dataloaders": data.test_dataloader()}):
        tested = Recorder()
        tested.test_step = tested.validation_step
        trainer(tmp_path).test(tested, verbose=False, **given)
        assert_same(tested.seen["val"], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_bytes_are_transferred_and_finished_there(make, name, workers, tmp_path):
    expected = list(make(name).train_dataloader())
    data, module = make(name, num_workers=workers), Recorder()
    on_gpu = trainer(tmp_path)
    on_gpu = pl.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    on_gpu.fit(module, datamodule=data)
    assert {images.dtype for images in module.raw} == {torch.uint8}
    for (x, y), (u, v) in zip(module.seen["train"], expected, strict=True):
        assert x.device.type == y.device.type == "cuda"
        assert torch.allclose(x.cpu(), u, atol=1e-5)
        assert torch.allclose(y.cpu(), v)
