"""Every network trains from the command line, on images of its size."""

import inspect
import sys

import pytest

from se_lightning import models
from se_lightning.cli import main as command_line
from se_lightning.models import list_models

# One per family and set of defaults; the others take two more minutes.
FAST = (
    "se_bn_inception",
    "se_densenet121",
    "se_densenet40_12",
    "se_densenet_bc100_12",
    "se_inception_v3",
    "se_mobilenet",
    "se_nested",
    "se_preact_resnet18",
    "se_preact_resnet20",
    "se_resnet18",
    "se_resnet56",
    "se_resnext50_32x4d",
    "se_shake_shake26_2x96d",
    "se_shufflenet",
    "se_simple",
    "se_simple_residual",
    "se_wrn16_8",
)


def shape_of(name: str) -> tuple[int, int, int]:
    """Return the classes, channels and pixels per side that a network is published for."""
    classes = inspect.signature(getattr(models, name)).parameters["num_classes"].default
    if name in ("se_simple", "se_simple_residual", "se_nested"):
        return classes, 1, 28
    if classes < 1000:
        return classes, 3, 32
    return classes, 3, 299 if "inception_" in name and "bn" not in name else 224


@pytest.mark.filterwarnings("ignore")  # two steps on two samples cause many warnings
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in list_models()]
)
def test_a_network_trains_two_batches_from_the_command_line(name, tmp_path, monkeypatch, result):
    classes, channels, size = shape_of(name)
    monkeypatch.chdir(tmp_path)
    arguments = (
        f"model={name} data=fake data.num_classes={classes} data.in_channels={channels} "
        f"data.image_size={size} data.size=4 data.batch_size=2 data.eval_batch_size=1 "
        "trainer.max_epochs=1 trainer.accelerator=cpu logger=csv "
        "callbacks.checkpoint=null lr_scheduler=constant"
    )
    monkeypatch.setattr(sys, "argv", ["se_lightning", *arguments.split()])
    command_line.main()
    found = result(tmp_path)
    assert (found["status"], found["steps"]) == ("completed", 2)
    assert found["model"] == name
    assert found["gates"] > 0
    assert 0 <= found["metrics"]["test/acc1"] <= 1
    assert (next(tmp_path.rglob("excitation")) / "histogram.png").is_file()
