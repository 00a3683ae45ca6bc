"""Accumulation, clipping and mixed precision, compared with a manual training loop."""

from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from se_lightning import SEResNetModule

CLIP = 0.5


@pytest.fixture
def data():
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 16, 16), torch.arange(64) % 10
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def manual_loop(model, data, device, dtype, *, clip=CLIP, window=4):
    """Average the window's gradients, then clip, then step; return each step's gradient norm."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    norms = []
    for number, (images, labels) in enumerate(data, 1):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = cross_entropy(model(images.to(device)), labels.to(device))
        scaler.scale(loss / window).backward()
        if number % window == 0:
            scaler.unscale_(optimizer)
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return norms


def fitted(data, folder, **options):
    torch.manual_seed(1)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0)
    model = SEResNetModule(20, 10, ratio=4, optimizer=sgd, channels_last=False)
    torch.manual_seed(1)
    twin = SEResNetModule(20, 10, ratio=4, channels_last=False)
    twin.load_state_dict(model.state_dict())
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, accumulate_grad_batches=4, gradient_clip_val=CLIP,
        enable_checkpointing=False, **quiet, **options,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 2
    return model, twin.train()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)]
)
def test_a_step_clips_the_average_of_its_batches(precision, dtype, data, tmp_path):
    model, twin = fitted(data, tmp_path, accelerator="cpu", precision=precision)
    norms = manual_loop(twin, data, "cpu", dtype)
    assert min(norms) > CLIP  # it was clipped
    for name, expected in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=1e-7)


def test_the_manual_loop_detects_clipping_before_averaging(data, tmp_path):
    """Clipping first and then dividing by the number of batches is a known defect elsewhere."""
    model, twin = fitted(data, tmp_path, accelerator="cpu", precision="32-true")
    manual_loop(twin, data, "cpu", torch.float32, clip=4 * CLIP)
    difference = model.backbone.conv1.weight - twin.backbone.conv1.weight
    assert difference.abs().max() > 1e-4


@pytest.mark.gpu
def test_a_step_in_fp16_clips_unscaled_gradients(data, tmp_path):
    model, twin = fitted(
        data, tmp_path, accelerator="gpu", devices=1, precision="16-mixed", deterministic=True
    )
    twin.cuda()
    assert min(manual_loop(twin, data, "cuda", torch.float16)) > CLIP
    for name, expected in twin.state_dict().items():
        found = model.state_dict()[name]
        torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-3, atol=1e-5)
