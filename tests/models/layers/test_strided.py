"""Strided 1x1 convolutions on CPUs with several threads.

oneDNN may crash or hang, so that the programs run in processes of their own.
"""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from se_lightning import ImageClassifier
from se_lightning.models.layers.strided import slice_strided

# Without the change, this crashes for fewer than 16 channels and an odd batch.
TRAIN = """
import sys
import torch
from torch import nn
from se_lightning import ImageClassifier
torch.set_num_threads(2)
channels, batch, compiled = map(int, sys.argv[1:])
backbone = nn.Sequential(
    nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 2 * channels, 1, stride=2),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 2),
)
model = ImageClassifier(backbone, 2)
if compiled:
    model.compile()
for _ in range(25):
    loss = model(torch.randn(batch, 3, 32, 32)).square().sum()
    loss.backward()
assert all(p.grad.isfinite().all() for p in model.parameters())
"""


def run(*arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(("channels", "batch"), [(4, 57), (8, 57), (12, 57), (15, 64), (16, 57)])
def test_training_a_users_network_does_not_crash(channels, batch):
    run("-c", TRAIN, str(channels), str(batch), "0")


@pytest.mark.slow
def test_training_a_compiled_network_does_not_crash():
    run("-c", TRAIN, "8", "57", "1")


def test_training_a_narrow_network_from_the_command_line_does_not_crash(tmp_path):
    narrow = ("model.depth=[1,1]", "model.widths=[8,16]", "model.stem=cifar", "callbacks=none")
    short = ("logger=csv", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=1")
    run("-m", "se_lightning", *narrow, *short, f"hydra.run.dir={tmp_path / 'run'}")


@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("size", [8, 9])
def test_the_result_is_that_of_the_convolution(stride, size):
    conv = nn.Conv2d(6, 8, 1, stride=stride, groups=2).double()
    twin = copy.deepcopy(conv)
    assert slice_strided(nn.Sequential(conv)) == ["0"]
    x = torch.randn(3, 6, size, size, dtype=torch.float64)
    found, wanted = conv(x), twin(x)  # contiguous float64, which is safe
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    towards = torch.randn_like(wanted)
    found.backward(towards)
    wanted.backward(towards)
    assert torch.allclose(conv.weight.grad, twin.weight.grad, rtol=1e-12, atol=1e-12)


def test_only_unsafe_convolutions_are_changed():
    class Special(nn.Conv2d):
        pass

    safe = {
        "wide": nn.Conv2d(16, 8, 1, stride=2),
        "dense": nn.Conv2d(4, 8, 1),
        "large": nn.Conv2d(4, 8, 3, stride=2),
        "padded": nn.Conv2d(4, 8, 1, stride=2, padding=1),
        "special": Special(4, 8, 1, stride=2),
    }
    network = nn.ModuleDict({**safe, "narrow": nn.Conv2d(15, 8, 1, stride=2)})
    assert slice_strided(network) == ["narrow"]
    assert slice_strided(network) == ["narrow"]  # a second time is harmless


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_uses_its_own_weights_and_stride(again):
    network = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2))
    slice_strided(network)
    other = again(network)
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.zero_()
    assert other(torch.ones(1, 4, 4, 4)).abs().sum() > 0
    other[0].stride = (1, 1)
    assert other(torch.ones(1, 4, 4, 4)).shape[-2:] == (4, 4)


def test_the_module_says_what_it_changes(caplog):
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.Flatten(), nn.Linear(32, 2))
    with caplog.at_level("INFO"):
        ImageClassifier(backbone, 2)
    (line,) = [each for each in caplog.messages if "slice their input" in each]
    assert line.endswith(": 0")
