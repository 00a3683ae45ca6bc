"""compile=: runs with a compiled network do what the others do, and say what they cannot."""

import json

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from se_lightning.models.layers.fused import checks

TINY = (
    "data=fake", "data.size=60", "data.image_size=16", "trainer.max_epochs=2", "model.stem=cifar",
    "model.ratio=2", "model.depth=[2]", "model.widths=[8]", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "lr_scheduler=constant",
)  # fmt: skip
EAGER = ("compile=default", "compile.backend=eager")
STOP = """
import os, signal
import pytorch_lightning as pl

class Stop(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == 5 and "RESUMED" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _fresh():
    """Compile anew in each test, and leave torch's settings as they were."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


def outcome(folder):
    """Return the weights, the metrics and the statistics of the gates."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    arrays = {
        f"{path.name} {name}": array
        for path in sorted(folder.glob("excitation/*.npz"))
        for name, array in np.load(path).items()
    }
    return {**last["state_dict"], **result["metrics"]}, arrays


def compare(one, other, **tolerances):
    for found, expected in zip(one, other, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "U":  # names
                assert found[key].tolist() == value.tolist(), key
            else:
                np.testing.assert_allclose(found[key], value, err_msg=key, **tolerances)


def run(start, *options):
    code, error = start(*TINY, *options)
    assert code == 0, error


def test_a_compiled_run_records_the_same_gates_and_is_tested_without_compiling(
    run_main, tmp_path, monkeypatch
):
    """Operations that are only traced are the same, bit for bit, but for the fused tails."""
    monkeypatch.setattr(checks, "ENABLED", False)
    run(run_main, "hydra.run.dir=plain")
    assert not counters["stats"]
    run(run_main, *EAGER, "hydra.run.dir=compiled")
    assert counters["stats"]["unique_graphs"] >= 4  # training, its last batch, validation, test
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
    compiled, plain = outcome(tmp_path / "compiled"), outcome(tmp_path / "plain")
    assert compiled[1]
    compare(compiled, plain, rtol=0, atol=0)
    test = "task=test", f"ckpt_path={tmp_path}/compiled/checkpoints/last.ckpt"
    metrics = []
    for options in ((), EAGER):
        torch._dynamo.reset()
        counters.clear()
        folder = tmp_path / f"test{len(options)}"
        code, error = run_main(
            *test, *options, "trainer.accelerator=cpu", f"hydra.run.dir={folder}"
        )
        assert code == 0, error
        metrics.append(json.loads((folder / "result.json").read_text())["metrics"])
        assert bool(counters["stats"]) == bool(options)
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["compile=fast"], "Available options in 'compile':\n\tdefault\n"),
        (["compile=default", "compile.mode=fast"], "`mode` (='fast') must be one of default, red"),
        (["compile=default", "compile.region=true"], "Did you mean `compile.regional`?"),
        (["compile.regional=true"], "Choose one of its options, too: compile=default, compile=max"),
        (["+compile.regional=true"], "`compile._target_` (=None) must name a class or function"),
        (["compile=default", "task=look"], "`compile` is an option of task=fit and task=test"),
        (
            ["compile=default", "compile.regional=true", "model.depth=[1,1]", "model.widths=[4,8]"],
            "SEResNet has no repeated units that could share compiled code",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_message(run_main, options, message, tmp_path):
    code, error = run_main(*TINY, *options, "callbacks=none")
    assert code == 1
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_machine_without_a_compiler_is_refused_before_training(run_main, tmp_path):
    with torch._inductor.config.patch("cpp.cxx", (None, "/nonexistent/g++")):
        code, error = run_main(*TINY, "compile=default")
    assert code == 1
    assert "torch.compile needs a C++ compiler, and there is none: install g++" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_network_that_cannot_be_compiled_ends_in_one_message(run_main, tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, 10))\n"
        "    def forward(self, x):\n"
        "        return super().forward(x if x.sum() > 0 else -x)\n"
    )
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "breaks.yaml").write_text(
        "_target_: se_lightning.ImageClassifier\nbackbone: {_target_: breaks.Net}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for word in TINY if not word.startswith("model.")]
    code, error = run_main("--config-dir", "mine", "model=breaks", *words, *EAGER, "trust=true")
    assert code == 1
    assert "error: The network cannot be compiled: " in error
    assert "Leave out compile=" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_module_without_a_backbone_is_refused(run_main, tmp_path, monkeypatch):
    (tmp_path / "bare.py").write_text(
        "import pytorch_lightning as pl\nimport torch\n"
        "class Bare(pl.LightningModule):\n"
        "    def training_step(self, batch, batch_idx): return None\n"
        "    def validation_step(self, batch, batch_idx): return None\n"
        "    def configure_optimizers(self): return None\n"
    )
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "bare.yaml").write_text("_target_: bare.Bare\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for word in TINY if not word.startswith(("model.", "lr_scheduler"))]
    more = ("--config-dir", "mine", "model=bare", "callbacks=none", "trust=true")
    code, error = run_main(*more, *words, *EAGER)
    assert code == 1
    assert "`compile` compiles the `backbone` of a module, which Bare does not have" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "compile=default",
        "compile=default compile.backend=aot_eager compile.regional=true callbacks=ema "
        "on_nonfinite=skip trainer.accumulate_grad_batches=2 trainer.precision=bf16-mixed",
        "compile=default compile.backend=aot_eager trainer=ddp_sim model.grad_checkpointing=true",
    ],
)
@pytest.mark.timeout(900)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(options, cli, tmp_path):
    (tmp_path / "stop.py").write_text(STOP)
    path = {"PYTHONPATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [*TINY, *options.split(), "data.batch_size=8", "checkpoint.every_n_steps=1"]
    command += ["logger=csv", "+callbacks.stop._target_=stop.Stop"]
    cli(*command, "hydra.run.dir=whole", env=path | {"RESUMED": "1"})
    cut = cli(*command, "hydra.run.dir=cut", env=path, check=False)
    assert cut.returncode != 0
    assert not (tmp_path / "cut" / "result.json").exists()
    # Other code would be compiled if it depended on what ran before.
    fresh = path | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "other"), "RESUMED": "1"}
    cli("resume=cut", env=fresh)
    found, expected = outcome(tmp_path / "cut"), outcome(tmp_path / "whole")
    compare(found, expected, rtol=0, atol=0)
    rows = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("cut", "whole")]
    assert rows[0] == rows[1]
    refused = cli("resume=cut", "compile=null", check=False)
    assert "leave out compile=null" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "compile=default compile.regional=true model.grad_checkpointing=true",
        "compile=max-autotune",
        "compile=reduce-overhead callbacks=ema on_nonfinite=skip",
        "compile=default compile.backend=aot_eager compile.regional=true trainer=ddp_sim "
        "model.grad_checkpointing=true",
        "compile=default compile.backend=eager trainer.strategy=ddp_spawn trainer.devices=2",
        "compile=default compile.backend=aot_eager model.freeze=all_but_gates "
        "model.gate_activation=double-sigmoid",
    ],
)
@pytest.mark.timeout(900)
def test_a_compiled_run_trains_like_an_uncompiled_one(options, cli, tmp_path):
    others = [word for word in options.split() if not word.startswith("compile")]
    common = [*TINY, *others, "logger=csv", "optimizer.lr=0.01"]
    cli(*common, "hydra.run.dir=plain")
    done = cli(*common, *options.split(), "hydra.run.dir=compiled")
    assert "recompile_limit" not in done.stderr + done.stdout
    compiled, plain = outcome(tmp_path / "compiled"), outcome(tmp_path / "plain")
    # A rounding error moves a few gates into the next bin of a histogram.
    close = [key for key in plain[1] if "hist" not in key.lower() and "count" not in key.lower()]
    for pair in (compiled, plain):
        pair[0].pop("val/acc1"), pair[0].pop("test/acc1")
    compare((compiled[0],), (plain[0],), rtol=1e-3, atol=1e-3)
    assert close or "callbacks" in options
    compare(
        ({key: compiled[1][key] for key in close},), ({key: plain[1][key] for key in close},),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "model=torchvision model.name=resnet18 model.add_gates=residual",
        "model=timm model.name=seresnet18 model.grad_checkpointing=true compile.regional=true",
        "model=timm model.name=convnext_atto model.add_gates=stages",
    ],
)
@pytest.mark.timeout(900)
def test_networks_of_other_libraries_train_alike(model, cli, tmp_path, short):
    own = [word for word in model.split() if not word.startswith("compile")]
    common = [
        "data=fake", "data.size=40", "data.image_size=64", "data.batch_size=8", *own, *short,
        "logger=csv", "callbacks=default", "optimizer.lr=0.01",
    ]  # fmt: skip
    compiled = ("compile=default", "compile.backend=aot_eager")
    cli(*common, "hydra.run.dir=plain")
    cli(*common, *compiled, *model.split(), "hydra.run.dir=compiled")
    found, expected = outcome(tmp_path / "compiled"), outcome(tmp_path / "plain")
    compare((found[0],), (expected[0],), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_batch_too_large_is_halved_and_the_run_compiles_again(cli, tmp_path):
    (tmp_path / "hungry.py").write_text(
        "import torch\nimport pytorch_lightning as pl\n"
        "class Hungry(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        if len(batch[1]) > 8:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    def on_train_end(self, trainer, module):\n"
        "        from torch._dynamo.utils import counters\n"
        "        print('graphs', counters['stats']['unique_graphs'])\n"
    )
    options = ("on_oom=accumulate", "data.batch_size=16", "callbacks=none", "logger=csv")
    callback = "+callbacks.hungry._target_=hungry.Hungry"
    env = {"PYTHONPATH": str(tmp_path)}
    done = cli(*TINY, *EAGER, *options, callback, "hydra.run.dir=run", env=env)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["batch_size"], result["accumulate_grad_batches"]) == (8, 2)
    (count,) = [line.split()[-1] for line in done.stdout.splitlines() if "graphs " in line]
    assert int(count) >= 2
