"""What a run sets by itself because of its devices; GPUs and CPUs of other kinds are imitated."""

import copy
import functools
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning.cli.run import hardware

CONF = Path(__file__).parents[3] / "conf"
CHECKPOINT_IO = {"_target_": "se_lightning.checkpoint.AtomicCheckpointIO"}
HALF = {"_target_": "pytorch_lightning.plugins.HalfPrecision", "precision": "bf16-true"}
FACTORY = {"_target_": "my.plugins.make"}


@pytest.fixture
def cpu(monkeypatch):
    """Imitate a CPU with or without AMX and AVX-512 BF16."""

    def imitate(*, amx, avx=True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

    return imitate


@pytest.fixture
def gpus(monkeypatch):
    """Imitate GPUs of these compute capabilities."""

    def imitate(*capabilities, cuda="13.0"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: capabilities[at])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: f"GPU {capabilities[at][0]}")
        monkeypatch.setattr(torch.version, "cuda", cuda)

    return imitate


@pytest.fixture(autouse=True)
def _global_settings():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@functools.cache  # composing takes long
def shipped(optimizer):
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        return compose("train", [f"optimizer={optimizer}"])


def composed(*overrides):
    adamw = "optimizer=adamw" in overrides
    config = copy.deepcopy(shipped("adamw" if adamw else "sgd"))
    config.merge_with_dotlist([each for each in overrides if each != "optimizer=adamw"])
    return config


def settled(*overrides, checkpoint=None, trains=True):
    config = composed(*overrides)
    hardware.settle(config, checkpoint, trains=trains)
    return config


def saved(precision):
    return {"se_lightning_config": {"trainer": {"precision": precision}}}


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(True, True, "bf16-mixed"), (False, True, "32-true"), (False, False, "32-true")],
)
def test_a_cpu_uses_bfloat16_if_it_has_amx(cpu, amx, avx, expected, caplog):
    cpu(amx=amx, avx=avx)
    with caplog.at_level("INFO"):
        assert settled("trainer.accelerator=cpu").trainer.precision == expected
        assert (
            settled("trainer.accelerator=cpu", "trainer.precision=auto").trainer.precision
            == expected
        )
    why = (
        "no AMX" if expected == "32-true" else "AMX; trainer.precision=32-true gives full precision"
    )
    line = f"precision      {expected}: this CPU has {why}"
    assert [record.getMessage() for record in caplog.records] == [line, line]


@pytest.mark.parametrize(
    ("capabilities", "devices", "expected"),
    [
        ([(8, 0)], "1", "bf16-mixed"),
        ([(12, 0)], "auto", "bf16-mixed"),
        ([(7, 5)], "1", "32-true"),
        ([(9, 0), (7, 5)], "1", "bf16-mixed"),  # the first
        ([(9, 0), (7, 5)], "[1]", "32-true"),
        ([(9, 0), (7, 5)], "-1", "32-true"),
        ([(9, 0), (7, 5)], "2", "32-true"),
        ([(7, 5), (9, 0), (8, 6)], "[1,2]", "bf16-mixed"),
        ([(7, 5), (9, 0), (8, 6)], "'1,2'", "bf16-mixed"),
        ([(9, 0)], "3", "32-true"),  # the Trainer refuses it
    ],
)
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_gpus_use_bfloat16_if_all_that_are_used_are_of_ampere_or_later(
    gpus, cpu, capabilities, devices, expected, accelerator
):
    cpu(amx=False)
    gpus(*capabilities)
    words = (f"trainer.devices={devices}", f"trainer.accelerator={accelerator}")
    assert settled(*words).trainer.precision == expected


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook_find_unused_parameters_false"])
def test_gpus_are_not_examined_before_processes_fork(gpus, monkeypatch, strategy):
    """Lightning refuses to fork a process that has used CUDA."""
    gpus((9, 0), (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", None)
    config = settled(f"trainer.strategy={strategy}", "trainer.devices=2")
    assert config.trainer.precision == "32-true"


def test_other_devices_use_float32(cpu, gpus):
    cpu(amx=True)
    gpus((9, 0), cuda=None)  # AMD's
    assert settled().trainer.precision == "32-true"
    for accelerator in ("mps", "tpu", "hpu"):
        assert settled(f"trainer.accelerator={accelerator}").trainer.precision == "32-true"
    gpus()
    assert (
        settled("trainer.accelerator=gpu").trainer.precision == "32-true"
    )  # the Trainer refuses it
    assert settled().trainer.precision == "bf16-mixed"  # no GPU: the CPU


@pytest.mark.parametrize("value", ["null", "32-true", "32", "16-mixed", "bf16-true", "64-true"])
def test_a_precision_that_is_set_is_kept_without_a_word(value, cpu, caplog):
    cpu(amx=True)
    with caplog.at_level("INFO"):
        kept = settled(f"trainer.precision={value}", "trainer.accelerator=cpu").trainer.precision
    assert str(kept) == {"null": "None"}.get(value, value)
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "node", "expected"),
    [
        ("plugins", [CHECKPOINT_IO], "bf16-mixed"),
        ("plugins", CHECKPOINT_IO, "bf16-mixed"),
        ("plugins", [CHECKPOINT_IO, HALF], None),
        (
            "strategy",
            {"_target_": "pytorch_lightning.strategies.SingleDeviceStrategy"},
            "bf16-mixed",
        ),
        (
            "strategy",
            {"_target_": "pytorch_lightning.strategies.DDPStrategy", "precision_plugin": HALF},
            None,
        ),
    ],
)
def test_a_plugin_for_the_precision_is_left_alone(key, node, expected, cpu):
    cpu(amx=True)
    config = composed("trainer.accelerator=cpu")
    OmegaConf.update(config, f"trainer.{key}", node, merge=False, force_add=True)
    hardware.settle(config, None, trains=True)
    assert config.trainer.precision == expected


def test_a_training_keeps_the_precision_of_its_checkpoint(cpu):
    for amx in (True, False):
        cpu(amx=amx)
        for precision in ("bf16-mixed", "32-true", "64-true"):
            config = settled("trainer.accelerator=cpu", checkpoint=saved(precision))
            assert config.trainer.precision == precision
        # Checkpoints of version 0.1.0 record none.
        assert settled("trainer.accelerator=cpu", checkpoint={}).trainer.precision == "32-true"
        given = settled(
            "trainer.accelerator=cpu", "trainer.precision=16-mixed", checkpoint=saved("32-true")
        )
        assert given.trainer.precision == "16-mixed"


@pytest.mark.parametrize(
    ("trained", "amx", "expected"),
    [
        ("bf16-mixed", True, "bf16-mixed"),
        ("bf16-mixed", False, "32-true"),
        ("32-true", True, "32-true"),
        (None, True, "32-true"),
        ("64-true", True, "32-true"),
    ],
)
def test_an_evaluation_repeats_the_precision_if_it_suits_the_machine(cpu, trained, amx, expected):
    cpu(amx=amx)
    checkpoint = {} if trained is None else saved(trained)
    config = settled("trainer.accelerator=cpu", checkpoint=checkpoint, trains=False)
    assert config.trainer.precision == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), True),
        (("trainer.benchmark=false",), False),
        (("trainer.deterministic=true",), None),
        (("trainer.deterministic=warn",), None),
        (("trainer.accelerator=cpu",), None),
    ],
)
def test_cudnn_chooses_its_algorithms_by_timing_on_a_gpu(gpus, words, expected):
    gpus((9, 0))
    assert settled(*words).trainer.benchmark == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "high"),
        (("trainer.precision=16-mixed",), "high"),
        (("trainer.precision=32-true",), "highest"),
        (("trainer.precision=null",), "highest"),
        (("trainer.accelerator=cpu",), "highest"),
    ],
)
def test_matrix_products_use_tf32_on_a_gpu_but_for_full_precision(gpus, words, expected):
    gpus((9, 0))
    settled(*words)
    assert torch.get_float32_matmul_precision() == expected
    assert torch.backends.cuda.matmul.allow_tf32 == (expected == "high")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), True),
        (("optimizer=adamw",), True),
        (("trainer.precision=32-true",), True),
        (("trainer.strategy=ddp_find_unused_parameters_true",), True),
        (("optimizer.fused=false",), False),
        (("optimizer.foreach=true",), None),
        (("optimizer=adamw", "optimizer.differentiable=true"), None),
        (("trainer.gradient_clip_val=1",), None),  # Lightning refuses it in mixed precision
        (("trainer.precision=16-mixed",), None),
        (("trainer.strategy=fsdp",), None),
        (("optimizer._target_=torch.optim.Adagrad",), None),
        (("trainer.accelerator=cpu",), None),
    ],
)
def test_optimizers_are_fused_on_a_gpu(gpus, words, expected):
    gpus((9, 0))
    config = settled(*words)
    assert config.optimizer.fused == expected
    assert config.model.optimizer.fused == expected


def test_an_optimizer_of_another_library_is_left_alone(gpus):
    gpus((9, 0))
    config = composed()
    config.optimizer = {"_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.1}
    hardware.settle(config, None, trains=True)
    assert "fused" not in config.optimizer


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"callbacks": [GradientAccumulationScheduler({0: 1, 3: 2})]},
    ],
)
def test_a_static_graph_with_accumulated_gradients_is_refused(options, tmp_path):
    """PyTorch would fail, or sum the gradients of some steps only."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(static_graph=True), logger=False,
        enable_checkpointing=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    with pytest.raises(MisconfigurationException, match=r"set trainer\.accumulate_grad_batches=1"):
        hardware.settle_ddp(trainer)


@pytest.mark.parametrize("given", [None, False])
def test_gradients_are_views_of_ddps_buffers_unless_it_is_switched_off(given, tmp_path):
    options = {} if given is None else {"gradient_as_bucket_view": given}
    strategies = [DDPStrategy(**options)]
    if given is None:
        strategies += ["ddp", "auto"]
    for strategy in strategies:
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, logger=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        hardware.settle_ddp(trainer)
        assert trainer.strategy._ddp_kwargs["gradient_as_bucket_view"] is (given is None)
    alone = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    hardware.settle_ddp(alone)
    assert not hasattr(alone.strategy, "_ddp_kwargs")


def test_the_config_resolves_outside_of_a_run(cpu):
    """As in a notebook, whose Trainer does not know the word `auto`."""
    text = (CONF / "trainer" / "default.yaml").read_text()
    assert re.search(r"^precision: (\S+)", text, re.M)[1] in hardware._AUTO
    for amx, expected in ((True, "bf16-mixed"), (False, "32-true")):
        cpu(amx=amx)
        with initialize_config_module("se_lightning.conf", version_base="1.3"):
            alone = compose(overrides=["+trainer=cpu"])
        assert (
            alone.trainer.precision
            == composed("trainer.accelerator=cpu").trainer.precision
            == expected
        )
