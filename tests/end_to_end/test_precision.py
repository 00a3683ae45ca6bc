"""Runs in the precision that suits the machine, also if they are resumed on another one."""

import json

import pytest
import torch

TINY = (
    "model.depth=[1]",
    "model.widths=[8]",
    "data.batch_size=32",
    "lr_scheduler=constant",
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=2",
    "trainer.enable_progress_bar=false",
    "callbacks=checkpoint",
)


@pytest.fixture
def amx(monkeypatch):
    """Imitate a CPU with or without AMX; bfloat16 works on every CPU, but slowly."""

    def imitate(has):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)

    return imitate


@pytest.fixture
def trained(run_main, tmp_path):
    """Run a command into a folder, and return its last checkpoint."""

    def run(folder, *words):
        code, error = run_main(*words, f"output_dir={folder}")
        assert code == 0, error
        return torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)

    return run


def weights_differ(one, other):
    pairs = zip(one["state_dict"].values(), other["state_dict"].values(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def test_auto_is_the_precision_that_suits_the_machine(trained, amx, tmp_path):
    one = (*TINY, "trainer.max_epochs=1")
    amx(has=True)
    mixed = trained("mixed", *one, "trainer.precision=bf16-mixed")
    full = trained("full", *one, "trainer.precision=32-true")
    assert weights_differ(mixed, full)
    assert not weights_differ(trained("default", *one), mixed)
    log = (tmp_path / "default" / "se_lightning.log").read_text()
    assert log.count("precision      bf16-mixed: this CPU has AMX") == 1
    amx(has=False)
    assert not weights_differ(trained("auto", *one, "trainer.precision=auto"), full)
    for state in (mixed, full):  # parameters, statistics and momentum stay in float32
        values = [*state["state_dict"].values(), *state["optimizer_states"][0]["state"].values()]
        values = [v["momentum_buffer"] if isinstance(v, dict) else v for v in values]
        assert {v.dtype for v in values if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("began_with_amx", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_resumes_in_its_precision_on_another_machine(
    trained, amx, run_main, tmp_path, began_with_amx
):
    precision = "bf16-mixed" if began_with_amx else "32-true"
    whole = trained("whole", *TINY, "trainer.max_epochs=2", f"trainer.precision={precision}")
    amx(has=began_with_amx)
    trained("run", *TINY, "trainer.max_epochs=1")
    amx(has=not began_with_amx)
    code, error = run_main("resume=run", "trainer.max_epochs=2", more=())
    assert code == 0, error
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = torch.load(path, weights_only=True)
    assert not weights_differ(resumed, whole)
    log = (tmp_path / "run" / "se_lightning.log").read_text()
    assert f"precision      {precision}: that of the checkpoint" in log


def test_task_test_repeats_the_loss_if_the_precision_suits_the_machine(
    trained, amx, run_main, tmp_path
):
    amx(has=True)
    trained("run", *TINY, "trainer.max_epochs=1")

    def loss(folder, *words):
        if words:
            assert run_main(*words, f"output_dir={folder}")[0] == 0
        return json.loads((tmp_path / folder / "result.json").read_text())["metrics"]["test/loss"]

    test = ("task=test", "ckpt_path=run/checkpoints/best.ckpt", *TINY[4:-1])
    assert loss("again", *test) == loss("run")
    amx(has=False)
    full = loss("full", *test)
    assert full != loss("run")
    assert full == pytest.approx(loss("run"), rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("words", "fused"),
    [
        ((), True),
        (("optimizer=adamw",), True),
        (("trainer.gradient_clip_val=1",), None),
        (("trainer.precision=16-mixed", "trainer.gradient_clip_val=1"), None),
        (("trainer.precision=16-mixed",), None),
    ],
)
def test_a_gpu_trains_with_what_suits_it(trained, words, fused, tmp_path):
    gpu = ("trainer.accelerator=gpu", "trainer.max_epochs=1", *words)
    state = trained("run", *(word for word in TINY if word != "trainer.accelerator=cpu"), *gpu)
    assert state["optimizer_states"][0]["param_groups"][0]["fused"] == fused
    if "trainer.precision=16-mixed" not in words:
        log = (tmp_path / "run" / "se_lightning.log").read_text()
        ampere = torch.cuda.get_device_capability() >= (8, 0)
        assert f"precision      {'bf16-mixed' if ampere else '32-true'}: " in log


@pytest.fixture
def _undeterministic():
    """Undo what trainer.deterministic=true sets for the process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.usefixtures("_undeterministic")
def test_a_deterministic_run_on_a_gpu_resumes_bit_for_bit(trained, run_main, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = [word for word in TINY if word != "trainer.accelerator=cpu"]
    words += ["trainer.accelerator=gpu", "trainer.deterministic=true"]
    whole = trained("whole", *words, "trainer.max_epochs=2")
    trained("run", *words, "trainer.max_epochs=1")
    code, error = run_main("resume=run", "trainer.max_epochs=2", more=())
    assert code == 0, error
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert not weights_differ(torch.load(path, weights_only=True), whole)
