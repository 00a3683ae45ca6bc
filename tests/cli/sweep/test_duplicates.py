"""Multiruns that would compare a network with itself."""

import re

import pytest

from se_lightning.cli.command import Command
from se_lightning.cli.sweep.duplicates import refuse_equal_networks
from se_lightning.cli.sweep.multirun import Multirun


def composed(*arguments):
    return Multirun.composed(Command.parse(arguments))


EQUAL = [
    (["model.divisor=8", "model.ratio=4,8,16"], "Jobs 1 and 2 .*hidden widths 8.*: model.ratio=8"),
    (["model.gate=none", "model.ratio=4,8"], "Jobs 0 and 1 .*network: model.ratio=4 and"),
    (["model.gate=channel,none", "model.ratio=4,8"], "Jobs 2 and 3"),
    (["model.ratio=4,4.0"], "model.ratio=4 and model.ratio=4.0 make"),
    (["model.stages=[1,2,3],null"], "model.stages=.1, 2, 3. and model.stages=None"),
    (["model.gate=spatial", "model.ratio=4,8"], "Jobs 0 and 1"),
    (["model.depth=20,[3,3,3]", "model.stem=cifar"], "model.depth=20 and"),
    (["seed=0,1", "model.ratio=4,4.0"], "Jobs 0 and 1"),
    (["model=torchvision", "model.name=resnet18", "model.ratio=4,8"], "Jobs 0 and 1"),
    (["model=timm", "model.name=resnet18", "model.add_gates=stages", "model.divisor=128",
      "model.ratio=4,8"], "Jobs 0 and 1"),
    (["model.gate=none", "model.placement=standard,pre"], "Jobs 0 and 1"),
    (["model=se_resnet20", "model.divisor=8", "hydra.mode=MULTIRUN", "model.ratio=8,16"], "Jobs 0"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), EQUAL, ids=lambda value: str(value)[:40])
def test_equal_networks_are_refused(overrides, message):
    argv = [*overrides]
    if "hydra.mode=MULTIRUN" not in argv:
        argv.insert(0, "-m")
    with pytest.raises(ValueError, match=message):
        refuse_equal_networks(composed(*argv))
    refuse_equal_networks(composed(*argv, "jobs.allow_equal=true"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.ratio=4,8,16"],
        ["seed=0,1,2"],
        ["trainer.devices=1,2,1"],
        ["model.ratio=4,4"],  # requested twice
        ["model.label_smoothing=0,0.1"],
        ["model.weights=a.pth,b.pth"],
        ["model.freeze=null,norms,backbone"],
        ["model.layer_decay=0.5,0.75"],
        ["model=torchvision", "model.name=resnet18", "model.add_gates=null,residual,stages"],
        ["model=torchvision", "model.name=resnet18,resnet34"],
        ["model.squeeze=avg,max,avgmax,none"],
        ["model.gate_activation=sigmoid,tanh"],
        ["model.placement=standard,pre,post,identity,inner"],
        ["model.gate=concurrent", "model.merge=sum,max,product"],
        ["model=se_resnet50", "model.stride_in=3x3,1x1"],
        ["model=se_resnet50", "model.ceil_pool=true,false"],
        ["model=se_shake_shake26_2x96d", "model.backward=shake,even"],
        ["model=se_simple,se_simple_residual"],
        ["model.ratio=0,8"],  # refused by the job itself
        ["model=nope,se_resnet20"],  # refused by Hydra
        ["data.batch_size=32,64", "model.gate=none"],
    ],
    ids=lambda value: str(value)[:40],
)
def test_different_networks_are_accepted(overrides):
    refuse_equal_networks(composed("-m", *overrides))


def test_a_single_run_is_not_checked():
    refuse_equal_networks(composed("model.ratio=4,4.0"))


def test_equal_networks_in_a_custom_config_are_refused(tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\nmodel: {divisor: 8}\n"
        "hydra: {sweeper: {params: {model.ratio: '8,16'}}}\n"
    )
    argv = ["-m", "--config-dir", str(tmp_path), "experiment=mine"]
    with pytest.raises(ValueError, match=re.escape("model.ratio=8 and model.ratio=16")):
        refuse_equal_networks(composed(*argv))
