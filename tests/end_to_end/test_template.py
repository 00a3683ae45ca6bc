"""Commands that users of lightning-hydra-template know: debug, trainers, loggers, train, tags."""

import json
import sys
from pathlib import Path

import pytest

QUIET = ("trainer.enable_progress_bar=false",)
# Trains in a second; a warm-up would warn that it is shortened.
SMALL = ("model.depth=[1]", "model.widths=[8]", "lr_scheduler=constant", *QUIET)


def only_result(folder: Path) -> dict:
    (path,) = folder.rglob("result.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("option", "epochs", "steps"),
    [("fdr", 1, 1), ("limit", 3, 15), ("overfit", 20, 60), ("profiler", 1, 20)],
)
def test_a_debug_run_has_its_length_and_leaves_no_checkpoint(
    run_main, tmp_path, option, epochs, steps
):
    code, error = run_main(f"debug={option}", *SMALL, more=())
    assert code == 0, error
    result = only_result(tmp_path / "outputs" / "debug")
    assert (result["epochs"], result["steps"]) == (epochs, steps)
    assert "test/acc1" in result["metrics"]
    (folder,) = (tmp_path / "outputs" / "debug").iterdir()
    assert {path.name for path in folder.iterdir()} <= {
        ".hydra",
        ".lock",
        "result.json",
        "se_lightning.log",
    }
    if option == "overfit":
        assert result["metrics"]["train/loss"] < 1.8  # ln 10 = 2.3 at the start


def test_the_profiler_prints_a_table(run_main, tmp_path):
    assert run_main("debug=profiler", *SMALL, "test=false", more=())[0] == 0
    (log,) = tmp_path.rglob("se_lightning.log")
    assert "run_training_epoch" in log.read_text()


def test_debug_turns_off_the_callbacks_and_loggers_of_an_experiment(run_main, tmp_path):
    recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        "# @package _global_\ndefaults:\n  - override /callbacks: early_stopping\n"
        "  - override /logger: csv\n"
    )
    own = ("--config-dir", str(tmp_path / "conf"), "experiment=mine", "debug=fdr", *SMALL)
    assert run_main(*own, more=())[0] == 0
    assert not list(tmp_path.rglob("metrics.csv"))


def test_no_logger_and_many_loggers(run_main, tmp_path, short, wandb_run):
    assert run_main("logger=none", "output_dir=none", *SMALL, *short, more=())[0] == 0
    found = {path.name for path in (tmp_path / "none").iterdir()}
    assert {"result.json", "checkpoints", "excitation"} <= found
    assert not found & {"metrics.csv", "wandb", "tensorboard"}
    many = ("logger=many_loggers", "output_dir=many", "tags=[first,second]", *SMALL, *short)
    assert run_main(*many, more=())[0] == 0
    found = {path.name for path in (tmp_path / "many").iterdir()}
    assert {"metrics.csv", "wandb", "tensorboard"} <= found
    assert wandb_run(tmp_path / "many", "tags") == ["first", "second"]


@pytest.mark.parametrize("tags", ["baseline", "[1,2]", "3", "true", "[a,null]"])
def test_tags_that_are_not_words_are_refused(run_main, tmp_path, short, tags):
    code, error = run_main(f"tags={tags}", *short)
    assert code == 1
    assert error.count("se_lightning: error:") == 1
    assert "`tags`" in error
    assert "tags=[first,second]" in error
    assert not list(tmp_path.rglob("result.json"))


def test_tags_are_in_the_result_of_a_run_and_of_each_job(run_main, tmp_path, short):
    assert run_main("tags=[base]", "output_dir=one", *SMALL, *short)[0] == 0
    assert only_result(tmp_path / "one")["tags"] == ["base"]
    assert run_main("output_dir=two", *SMALL, *short, "trainer.fast_dev_run=true")[0] == 0
    assert only_result(tmp_path / "two")["tags"] == []


def test_without_training_the_given_weights_are_tested(run_main, tmp_path, short):
    """With a checkpoint, with weights, and with neither, which a warning names."""
    net = (*SMALL, "trainer.accelerator=cpu")
    assert run_main("output_dir=run", "trainer.max_epochs=2", *net, "callbacks=checkpoint")[0] == 0
    trained = only_result(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for name, start in {"a": f"ckpt_path={best}", "b": f"model.weights={best}"}.items():
        code, error = run_main("train=false", start, f"output_dir={name}", *net)
        assert code == 0, error
        tested = only_result(tmp_path / name)
        assert tested["metrics"]["test/acc1"] == trained["metrics"]["test/acc1"]
        assert set(tested["metrics"]) == {"test/loss", "test/acc1", "test/acc5"}
        assert tested["steps"] == 0
        assert not (tmp_path / name / "checkpoints").exists()
        assert "random weights" not in (tmp_path / name / "se_lightning.log").read_text()
    assert run_main("train=false", "output_dir=c", *net)[0] == 0
    assert "train=false tests random weights" in (tmp_path / "c" / "se_lightning.log").read_text()


def test_without_a_test_a_run_ends_with_the_last_epoch(run_main, tmp_path, short):
    assert run_main("test=false", "output_dir=run", *SMALL, *short)[0] == 0
    metrics = only_result(tmp_path / "run")["metrics"]
    assert {"train/loss", "val/acc1"} <= set(metrics)
    assert not any(name.startswith("test/") for name in metrics)
    # It is a setting of the run, which resuming keeps.
    code, error = run_main("resume=run", "test=true", more=())
    assert code == 1
    assert "leave out test=true" in error
    assert run_main("resume=run", "trainer.max_epochs=2", more=())[0] == 0
    again = only_result(tmp_path / "run")
    assert again["steps"] == 4
    assert not any(name.startswith("test/") for name in again["metrics"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train=false", "test=false"], ["`train` and `test` are both false"]),
        (["train=3"], ["`train` (=3) must be true or false"]),
        (["test=no_thanks"], ["`test` (='no_thanks') must be true or false"]),
        (
            ["task=test", "train=false", "ckpt_path=a.ckpt"],
            ["`train=false` is an option of task=fit"],
        ),
        (["task=benchmark_data", "test=false"], ["`test=false` is an option of task=fit"]),
        (["trainer=gpu", "trainer.accelerator=gpu"], ["GPU", "accelerator"]),
        (
            ["-m", "hydra/sweeper=optuna", "model.ratio=4,8"],
            ["hydra/sweeper/optuna", "jobs.trials"],
        ),
        (["-m", "hydra/sweeper=ax", "model.ratio=4,8"], ["hydra/sweeper/ax", "jobs.trials"]),
        (["hydra/sweeper=nevergrad"], ["hydra/sweeper/nevergrad", "jobs.trials"]),
    ],
)
def test_a_mistake_gets_one_message(run_main, tmp_path, arguments, words):
    (tmp_path / "a.ckpt").touch()
    code, error = run_main(*arguments, *SMALL)
    assert code == 1
    assert error.count("se_lightning: error:") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("option", ["hydra/sweeper: optuna", "hydra/sweeper: ax"])
def test_a_sweeper_in_a_file_gets_the_same_advice(run_main, tmp_path, option):
    search = tmp_path / "conf" / "experiment" / "search.yaml"
    search.parent.mkdir(parents=True)
    search.write_text(f"# @package _global_\ndefaults:\n  - override /{option}\n")
    code, error = run_main("--config-dir", str(tmp_path / "conf"), "experiment=search")
    assert code == 1
    assert "jobs.trials" in error


@pytest.mark.slow
def test_output_dir_is_the_folder_of_a_run_or_of_a_multirun(run_main, tmp_path, short, cli):
    assert run_main("output_dir=runs/a b", "trainer.fast_dev_run=true", *SMALL)[0] == 0
    assert only_result(tmp_path / "runs" / "a b")["status"] == "completed"
    assert not (tmp_path / "outputs").exists()
    again = run_main("output_dir=runs/a b", "trainer.fast_dev_run=true", *SMALL)
    assert again[0] == 1
    assert "already holds a run" in again[1]
    code, error = run_main("resume='runs/a b'", "output_dir=elsewhere", more=())
    assert code == 1
    assert "leave out output_dir=elsewhere" in error
    sweep = ("-m", "model.ratio=4,8", "output_dir=sweep", "trainer.fast_dev_run=true", *SMALL)
    cli(*sweep, "logger=csv", "tags=[both]")
    jobs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert [job["status"] for job in jobs] == ["completed", "completed"]
    assert [job["tags"] for job in jobs] == [["both"], ["both"]]
    assert not (tmp_path / "multirun").exists()


def test_output_dir_of_a_file_is_the_folder_of_the_run(run_main, tmp_path):
    recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\noutput_dir: mine/${seed}\nseed: 7\n")
    own = ("--config-dir", str(tmp_path / "conf"), "experiment=mine")
    assert run_main(*own, *SMALL, "trainer.limit_train_batches=2", "trainer.max_epochs=1")[0] == 0
    folder = tmp_path / "mine" / "7"
    assert {"checkpoints", "metrics.csv", "result.json", ".hydra"} <= {
        path.name for path in folder.iterdir()
    }


def test_early_stopping_ends_a_run_and_keeps_the_default_callbacks(run_main, tmp_path):
    stop = ("callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100")
    few = (
        "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1",
        "trainer.accelerator=cpu",
    )
    assert run_main("callbacks=early_stopping", *stop, *few, *SMALL)[0] == 0
    assert only_result(tmp_path)["epochs"] == 2  # the first one sets the loss to beat
    assert list(tmp_path.rglob("last.ckpt"))


def test_early_stopping_goes_with_other_sets_of_callbacks(run_main, tmp_path):
    both = ("callbacks=[ema,early_stopping]", "trainer.fast_dev_run=true", *SMALL)
    code, error = run_main(*both)
    assert code == 0, error


@pytest.mark.slow
def test_ddp_sim_trains_on_two_processes(cli, result, tmp_path, short):
    cli("trainer=ddp_sim", *SMALL, *short, "logger=csv")
    assert result(tmp_path)["world_size"] == 2


@pytest.mark.slow
def test_a_multirun_with_ddp_sim(cli, tmp_path, short):
    rates = "optimizer.lr=0.005,0.01,0.02"
    cli("-m", rates, "trainer=ddp_sim", *SMALL, *short, "logger=none", "output_dir=sweep")
    found = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/result.json")]
    assert [(each["world_size"], each["status"]) for each in found] == [(2, "completed")] * 3


# What the template's train.py does, with its own nodes as another project would write them.
PROJECT = """
import lightning as L
from hydra.utils import instantiate
from omegaconf import OmegaConf

config = OmegaConf.create({
    "data": {"_target_": "se_lightning.DigitsDataModule", "color_jitter": [0.1, 0.1, 0.1, 0.0]},
    "model": {
        "_target_": "se_lightning.SEResNetModule", "depth": [1], "widths": [8], "ratio": 4,
        "in_channels": 1, "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True},
    },
    "callbacks": {
        "best": {
            "_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "checkpoints",
            "save_last": True, "monitor": "val/acc1", "mode": "max",
        },
        "histogram": {"_target_": "se_lightning.ExcitationHistogram"},
        "doctor": {"_target_": "se_lightning.GateDoctor"},
    },
    "trainer": {
        "_target_": "lightning.pytorch.trainer.Trainer", "max_epochs": 1, "accelerator": "cpu",
        "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1,
        "enable_progress_bar": False, "logger": False,
    },
})
data, model = instantiate(config.data), instantiate(config.model)
assert isinstance(data, L.LightningDataModule) and isinstance(model, L.LightningModule)
callbacks = [instantiate(node) for node in config.callbacks.values()]
trainer = instantiate(config.trainer, callbacks=callbacks)
trainer.fit(model=model, datamodule=data)
path = trainer.checkpoint_callback.best_model_path
first = trainer.test(model=model, datamodule=data, ckpt_path=path)
again = type(model).load_from_checkpoint(path, weights_only=True)
assert again.hparams.widths == [8] and type(again.hparams.widths) is list
assert instantiate(config.trainer).test(again, data) == first
"""


@pytest.mark.slow
def test_the_parts_train_and_test_in_a_project_with_lightning_pytorch(cli, tmp_path):
    pytest.importorskip("lightning", reason="the other package of Lightning")
    cli(command=[sys.executable, "-c", PROJECT])
    assert {"last.ckpt"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert list(tmp_path.rglob("histogram.npz"))
