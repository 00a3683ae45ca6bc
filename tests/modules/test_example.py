"""An example image: sizes and FLOPs in summaries, graphs in TensorBoard, exports."""

import onnxruntime
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.model_summary import ModelSummary
from torch import nn

from se_lightning import (
    FakeDataModule,
    ImageClassifier,
    SEInceptionV3Module,
    SEResNetModule,
    SESimpleModule,
    TorchvisionModule,
)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: SEResNetModule(20, ratio=4, in_channels=1), (1, 1, 32, 32)),
        (lambda: SEResNetModule(50), (1, 3, 224, 224)),
        (lambda: SESimpleModule(), (1, 1, 28, 28)),
        (lambda: SEInceptionV3Module(), (1, 3, 224, 224)),
        (lambda: TorchvisionModule("resnet18", in_channels=4), (1, 4, 224, 224)),
    ],
    ids=["small", "large", "exact", "inception", "torchvision"],
)
def test_networks_know_a_shape_that_they_take(make, shape):
    module = make().eval()
    assert module.example_input_array.shape == shape
    assert module(module.example_input_array).shape == (1, 10)


def test_a_network_of_unknown_input_has_none_and_one_that_is_set_counts():
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3)
    assert module.example_input_array is None
    module.example_input_array = torch.ones(1, 1, 2, 2)
    assert module.example_input_array.shape == (1, 1, 2, 2)


def test_a_compiled_network_is_not_compiled_for_an_example():
    module = SEResNetModule(20, ratio=4)
    module.backbone.compile(backend="eager")
    assert module.example_input_array is None


def test_the_summary_has_sizes_and_flops():
    summary = ModelSummary(SEResNetModule(20, ratio=4, in_channels=1), max_depth=1)
    assert summary.in_sizes[0] == [1, 1, 32, 32]
    assert summary.out_sizes[0] == [1, 10]
    # He et al. 2016: 40.8 M multiply-adds for RGB; FLOPs count both.
    assert summary.total_flops == pytest.approx(2 * 40.6e6, rel=0.02)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_the_shape_is_that_of_the_data(tmp_path):
    module = SEResNetModule(18, ratio=4)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, accelerator="cpu", logger=logger,
        enable_progress_bar=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    before = torch.get_rng_state()
    assert module.example_input_array.shape == (1, 3, 224, 224)
    assert torch.equal(before, torch.get_rng_state())
    trainer.fit(module, FakeDataModule(size=8, image_size=64))
    assert module.example_input_array.shape == (1, 3, 64, 64)
    (log,) = tmp_path.rglob("events*")
    assert b"backbone" in log.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_export_needs_no_sample(tmp_path):
    module = SEResNetModule(20, ratio=4, in_channels=1).eval()
    module.to_onnx(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = module.example_input_array + 0.5
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), rtol=1e-3, atol=1e-4)
