"""The command line answers at once, with one message, and leaves no files behind."""

import os
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["python -m se_lightning", "se_resnet{18,20,", "trainer.devices=1"]),
        (["--version"], ["se_lightning 0."]),
        (["task=test"], ["This task needs a checkpoint: ckpt_path="]),
        (["task=compare", "data=cifar10"], ["This task needs a checkpoint: ckpt_path="]),
        (["task=what_if", "ckpt_path=null"], ["This task needs a checkpoint: ckpt_path="]),
        (["task=test", "ckpt_path=nowhere"], ["`ckpt_path` (=nowhere) is not a file"]),
        (["task=compare", "ckpt_path=[a,b]"], ["`ckpt_path` (=a) is not a file"]),
        (["ckpt_path=~/nowhere"], ["/nowhere) is not a file"]),
        (["lr=0.1"], ["Did you mean `optimizer.lr`?"]),
        (["--cfg", "job"], ["_target_: se_lightning.SEResNetModule", "depth: 20"]),
        (["model=nope"], ["Could not find 'model/nope'", "se_resnet50"]),
        (["data=nope"], ["Could not find 'data/nope'", "fashion_mnist"]),
        (["model.growth_rate=3"], ["'model.growth_rate'", "`model` has: ratio, gate, squeeze"]),
        (["sead=3"], ["'sead'", "Did you mean `seed`?"]),
        (["model=se_wrn16_8", "model.width_facto=3"], ["Did you mean `model.width_factor`?"]),
        (["trainer.devicez=3"], ["'trainer.devicez'", "Did you mean `trainer.devices`?"]),
        (["+trainer.devicez=3"], ["`trainer.devicez`", "Did you mean `trainer.devices`?"]),
        (["++model.ratioo=3"], ["`model.ratioo`", "Did you mean `model.ratio`?"]),
        (["+sead=3"], ["`sead`", "Did you mean `seed`?"]),
        (["model.ratio=4,8"], ["--multirun"]),
        (["hydra.run.dir=/dev/null/run"], ["Not a directory: /dev/null/run", "hydra.run.dir=DIR"]),
    ],
)
def test_help_and_config_errors_do_not_import_torch(cli, tmp_path, arguments, words):
    done = cli(*arguments, check=False, env={"PYTHONPROFILEIMPORTTIME": "1"})
    lines = done.stderr.splitlines()
    imported = {
        line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")
    }
    printed = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert "hydra" in imported
    assert not imported & {"torch", "pytorch_lightning", "wandb", "matplotlib", "sklearn"}
    for word in words:
        assert word in done.stdout + printed
    assert "Traceback" not in printed
    assert done.returncode == (0 if arguments[0].startswith("--") else 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


MISTAKES = [
    (["model.ratio=0"], "model: `ratio` (=0) must be a number of at least 1"),
    (["model.ratio=-1"], "model: `ratio` (=-1) must be"),
    (["model.ratio=abc"], "model: `ratio` (='abc') must be"),
    (["model.ratio=[4,8]"], "model: `ratio` (=[4, 8]) must be a number, or one per stage"),
    (["model.gate=foo"], "model: `gate` (='foo') must be one of channel, spatial, concurrent"),
    (["model.squeeze=foo"], "model: `squeeze` (='foo') must be one of avg, max, avgmax, none"),
    (["model.gate_activation=foo"], "`gate_activation` (='foo') must be one of sigmoid, tanh"),
    (["model.placement=foo"], "model: `placement` (='foo') must be one of standard, pre, post"),
    (["model.stages=[4]"], "model: `stages` (=[4]) must list numbers from 1 to 3"),
    (["model.depth=19"], "There is no SE-ResNet of depth 19. Use one of 18, 20, "),
    (["model=se_vgg16_bn", "model.placement=pre"], "'model.placement'"),
    (
        ["model=se_vgg16_bn", "+model.placement=pre"],
        "There is no config key `model.placement`.",
    ),
    (["model=se_inception_v3"], "32x32 pixels, but the network takes at least 75x75"),
    (["model=se_simple", "model.image_size=28"], "set `image_size` to 32"),
    (["model.in_channels=3"], "The images have 1 channel(s), but the network takes 3"),
    (["data=fake", "data.size=0"], "data: `size` (=0) must be a whole number"),
    (["-m", "model.divisor=8", "model.ratio=8,16"], "Jobs 0 and 1 of this multirun train the same"),
    (["model.num_classes=5"], "10 classes, but the network tells 5 apart"),
    (["trainer.accelerator=gpu", "trainer.devices=999"], "999 on GPUs, but this machine has "),
    (["trainer.devices=abc"], "trainer: "),
    (["trainer.precision=7"], "trainer: "),
    (["data=mnist", "data.root=nowhere"], "Set data.root to its folder, or download it"),
    (["data.batch_size=1"], "`batch_size` (=1) must be at least 2"),
    (["data.crop_padding=-1"], "`crop_padding` (=-1)"),
    (["callbacks.excitation_histogram.bins=0"], "`bins` (=0)"),
    (["+callbacks.excitation_histogram.binz=9"], "ExcitationHistogram does not take `binz`. Did"),
    (["task=test"], "This task needs a checkpoint: ckpt_path="),
    (["task=test", "ckpt_path=nowhere.ckpt"], "`ckpt_path` (=nowhere.ckpt) is not a file"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_one_message_and_leaves_nothing(run_main, tmp_path, arguments, message):
    code, error = run_main(*arguments)
    assert code == 1
    assert error.startswith("se_lightning: error: ")  # the only line about the error
    last = error.rstrip().rpartition("se_lightning: error: ")[2]
    assert message in last
    assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "given", [["resume="], ["task=test", "ckpt_path="], ["-m", "model=", "seed=1,2"], ["resume=''"]]
)
def test_an_empty_variable_of_the_shell_starts_nothing(run_main, tmp_path, given):
    code, error = run_main(*given)
    assert code == 1
    assert "has no value: is a variable of your shell unset?" in error
    assert not list(tmp_path.iterdir())


def test_a_run_folder_at_home_in_a_config(run_main, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for kind, flag in (("run", []), ("sweep", ["-m"])):
        (tmp_path / "conf").mkdir(exist_ok=True)
        text = f"defaults: [train, _self_]\nhydra: {{{kind}: {{dir: ~/{kind}}}}}\n"
        (tmp_path / "conf" / f"{kind}.yaml").write_text(text)
        kept = tmp_path / "me" / kind / ("0" if kind == "sweep" else "") / "result.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("{}")
        code, error = run_main(*flag, "--config-dir", "conf", "--config-name", kind)
        assert code == 1
        assert f"{kept.parent} already holds a run" in error
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("task", ["fit", "test"])
@pytest.mark.parametrize("kind", ["code", "html"])
def test_a_bad_checkpoint_is_refused_and_not_executed(run_main, tmp_path, task, kind):
    ran, path = tmp_path / "ran", tmp_path / "bad.ckpt"
    if kind == "code":
        torch.save({"state_dict": {}, "x": Touch(ran)}, path)
    else:
        path.write_text("<html>404</html>")
    code, error = run_main(f"task={task}", f"ckpt_path={path}")
    assert code == 1
    last = error.rstrip().rpartition("se_lightning: error: ")[2]
    assert last.startswith(str(path))
    assert ("could run code (io.open); it was refused" in last) == (kind == "code")
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad.ckpt"]


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_bug_keeps_its_traceback(run_main, monkeypatch):
    from se_lightning.cli.run import run as train

    def broken(*_, **__):
        raise KeyError("planted")

    monkeypatch.setattr(train, "build", broken)
    code, error = run_main()
    assert code == 1
    assert "Traceback" in error
    assert error.rstrip().endswith("se_lightning: error: KeyError: 'planted'")


def test_hydra_full_error_shows_the_traceback_of_a_mistake(run_main, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, error = run_main("model.ratio=0")
    assert code == 1
    assert "Traceback" in error
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize("place", ["run", "sweep"])
def test_a_directory_that_holds_a_run_is_left_alone(run_main, tmp_path, place):
    kept = tmp_path / "old" / ("0" if place == "sweep" else "") / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    code, error = run_main(f"hydra.{place}.dir={tmp_path / 'old'}", *["-m"][: place == "sweep"])
    assert code == 1
    assert f"{kept.parent} already holds a run" in error
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_text() == "{}"


def test_a_directory_named_in_a_config_is_left_alone_too(run_main, tmp_path):
    config = tmp_path / "conf" / "experiment" / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"# @package _global_\nhydra: {{run: {{dir: {tmp_path / 'old'}}}}}\n")
    kept = tmp_path / "old" / "result.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    code, error = run_main("--config-dir", str(config.parent.parent), "+experiment=mine")
    assert code == 1
    assert "already holds a run" in error
    assert kept.read_text() == "{}"


def test_a_mistake_does_not_delete_files_of_the_user(run_main, tmp_path):
    own = tmp_path / "run" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    run_main("model.ratio=0", f"hydra.run.dir={own.parent}")
    assert list(own.parent.iterdir()) == [own]


def test_a_group_composes_the_same_with_and_without_a_plus(cli):
    composed = [cli(f"{form}model=se_resnet50", "--cfg", "job").stdout for form in ("", "+")]
    assert composed[0] == composed[1]
    assert "depth: 50" in composed[0]


def test_a_custom_target_may_have_other_keys(cli):
    cli(
        "optimizer._target_=torch.optim.Adam",
        "~optimizer.momentum",
        "~optimizer.dampening",
        "~optimizer.nesterov",
        "+optimizer.amsgrad=true",
        "+callbacks.timer={_target_: pytorch_lightning.callbacks.Timer}",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "logger=csv",
    )


def test_the_console_script_and_the_module_are_the_same():
    script = Path(sys.executable).with_name("se-lightning")
    assert "from se_lightning.cli.main import main" in script.read_text()
