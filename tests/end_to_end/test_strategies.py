"""Strategies for several ranks: synchronized batch norm and FSDP."""

import copy
import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from se_lightning.models import create_model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.sync_batchnorm=true", "trainer.devices=2"), "batch norm works on GPUs only"),
        (("trainer.strategy=fsdp",), "The strategy `fsdp` requires a GPU accelerator"),
    ],
)
def test_options_that_need_gpus_are_refused_on_a_cpu(words, message, run_main, short):
    code, error = run_main(*short, *words)
    assert code == 1
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "name", ["se_resnet20", "se_preact_resnet20", "se_densenet_bc100_12", "se_wrn16_8"]
)
def test_synchronized_norms_do_not_change_the_network(name):
    """In one process, where PyTorch's layer falls back to plain batch norm."""
    plain = create_model(name, num_classes=10, ratio=4).train()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert not any(type(module) is nn.BatchNorm2d for module in synchronized.modules())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(synchronized(images), plain(images), rtol=0, atol=0)
    assert set(synchronized.state_dict()) == set(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synchronized.state_dict()[key], value, rtol=0, atol=0)


# Two ranks on one GPU: gloo carries the statistics, as NCCL would between two GPUs.
SYNCHRONIZED = """
import sys, torch
from torch import distributed, nn
from se_lightning.models import create_model

distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
net = create_model("se_resnet20", num_classes=10, ratio=4).double().cuda().train()
images = torch.randn(8, 3, 32, 32, dtype=torch.double).cuda()
if sys.argv[2] == "synchronized":
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
net(images[4 * rank : 4 * rank + 4] if sys.argv[2] != "joint" else images)
if rank == 0:
    torch.save({key: value.cpu() for key, value in net.state_dict().items()}, sys.argv[1])
distributed.destroy_process_group()
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_two_ranks_with_synchronized_norms_have_the_statistics_of_one_batch(tmp_path):
    (tmp_path / "script.py").write_text(SYNCHRONIZED)
    states = {}
    for way in ("joint", "synchronized", "plain"):
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
        command = [sys.executable, "-m", *command, f"{way}.pt", way]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=200)
        states[way] = torch.load(tmp_path / f"{way}.pt", weights_only=True)
    for key, expected in states["joint"].items():
        torch.testing.assert_close(states["synchronized"][key], expected, rtol=1e-6, atol=1e-8)
    key = "layer1.0.bn1.running_mean"
    assert not torch.allclose(states["plain"][key], states["joint"][key], rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.slow
def test_fsdp_trains_and_its_checkpoint_is_a_single_file_that_loads(cli, short, tmp_path, result):
    gpu = [word for word in short if not word.startswith("trainer.accelerator")]
    words = ("trainer.strategy=fsdp", "trainer.accelerator=gpu", "callbacks=checkpoint")
    cli(*gpu, *words, "logger=csv", "hydra.run.dir=run")
    assert result(tmp_path)["status"] == "completed"
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert best.is_file()
    cli("task=test", f"ckpt_path={best}", "trainer.accelerator=cpu", "logger=csv")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_a_strategy_that_starts_processes_for_the_fit_also_tests(strategy, cli, short, tmp_path):
    """The fit's processes write metrics.csv, and this one the test's row."""
    options = (f"trainer.strategy={strategy}", "trainer.devices=2", "lr_scheduler=constant")
    cli(*short, *options, "logger=csv", "hydra.run.dir=run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/loss"] for row in rows)
    assert float(rows[-1]["test/loss"]) == pytest.approx(result["metrics"]["test/loss"])


# Two ranks train with each combination of options, and record what they end with.
DDP = """
import math, sys, torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import DDPStrategy
from se_lightning import FakeDataModule, NonFinite, SEResNetModule
from se_lightning.cli.run.hardware import settle_ddp

class Spoiler(Callback):
    def on_after_backward(self, trainer, module):
        self.model = trainer.strategy.model
        if module.hparams.num_classes == 10 and trainer.fit_loop.total_batch_idx == 3:
            module.backbone.fc.weight.grad.fill_(math.inf)

ends = {}
for checkpointing in (False, True):
    for accumulated in (1, 2):
        for name in ("plain", "views", "static"):
            if name == "static" and accumulated > 1:
                continue  # refused
            torch.manual_seed(0)
            network = SEResNetModule(
                [1, 1], widths=[8, 16], num_classes=10, grad_checkpointing=checkpointing
            )
            plain, static = {"gradient_as_bucket_view": False}, {"static_graph": True}
            options = {"plain": plain, "static": static, "views": {}}[name]
            spoiler, watch = Spoiler(), NonFinite(action="skip")
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy=DDPStrategy(**options),
                max_epochs=2, accumulate_grad_batches=accumulated, callbacks=[watch, spoiler],
                logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
                precision="bf16-mixed", default_root_dir=sys.argv[1],
            )
            settle_ddp(trainer)
            trainer.fit(network, FakeDataModule(size=96, image_size=16, batch_size=8))
            model, skipped = spoiler.model, trainer.callback_metrics["train/skipped_steps"]
            key = (checkpointing, accumulated, name)
            settings = (model.gradient_as_bucket_view, model.static_graph, int(skipped))
            ends[key] = (settings, trainer.global_step, dict(network.named_parameters()))
torch.save(ends, f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_static_graphs_and_views_of_buffers_change_no_weight_and_ranks_agree(tmp_path):
    """With skipped steps and checkpointed gradients (Lightning-AI/pytorch-lightning#20704)."""
    (tmp_path / "script.py").write_text(DDP)
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first) == 10
    for key, (settings, steps, weights) in first.items():
        checkpointing, accumulated, name = key
        assert settings == (name != "plain", name == "static", 1), key
        assert steps == 12 // accumulated, key
        _, _, plain = first[checkpointing, accumulated, "plain"]
        for path, weight in weights.items():
            assert torch.equal(weight, second[key][2][path]), (key, path)
            assert torch.equal(weight, plain[path]), (key, path)
