"""Lightning's own command line takes our classes: by name, with the help of every option."""

import inspect
import os
import re
import subprocess
import sys

import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

import se_lightning
from se_lightning.data.in_memory.datamodule import InMemoryDataModule, InMemoryOptions

FAST = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.logger=false"]
BAR = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
QUICK = ["--model.depth=[1]", "--model.widths=[8]", "--model.in_channels=1", "--model.ratio=4"]
DATA = [name for name in se_lightning.__all__ if name.endswith("DataModule")]
MODELS = [name for name in se_lightning.__all__ if name.startswith("SE") and "Module" in name]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py"])  # LightningCLI warns of arguments in both places
    # It also uses what jsonargparse has deprecated.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def shown(capsys, *arguments: str) -> str:
    """Return what the command line prints before it exits."""
    with pytest.raises(SystemExit) as raised:
        LightningCLI(args=list(arguments))
    assert not raised.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS[:1])
def test_short_names_are_found_and_every_option_is_in_the_printed_config(capsys, model, data):
    printed = shown(capsys, "fit", "--model", model, "--data", data, "--print_config")
    config = yaml.safe_load(printed)
    assert config["model"]["class_path"] == f"se_lightning.{model}"
    assert config["model"]["init_args"].keys() >= {"ratio", "gate", "label_smoothing", "freeze"}
    assert config["data"]["class_path"] == f"se_lightning.{data}"
    given = config["data"]["init_args"]
    made = getattr(se_lightning, data)().hparams
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()} == dict(made)


@pytest.mark.parametrize("data", DATA)
def test_each_option_of_a_datamodule_has_a_help(capsys, data):
    printed = shown(capsys, "fit", "--data.help", data)
    _without_words(printed, "data", inspect.signature(getattr(se_lightning, data)).parameters)


@pytest.mark.parametrize("model", MODELS)
def test_each_option_of_a_module_has_a_help(capsys, model):
    printed = shown(capsys, "fit", "--model.help", model)
    names = inspect.signature(getattr(se_lightning, model)).parameters
    _without_words(printed, "model", [name for name in names if name != "unknown"])


def _without_words(printed: str, group: str, names) -> None:
    """Assert that the help of each option has words before its type."""
    text = " ".join(printed[printed.index("Help for") :].split())
    for name in names:
        (_, *found) = text.split(f"--{group}.{name} ")
        assert found, name
        before_type = found[-1].partition("(type:")[0].split()
        # Not the names of its value: `--model.depth DEPTH, --model.depth+ DEPTH`.
        assert len([word for word in before_type if re.match("[a-z]+[.,;:]?$", word)]) >= 1, name


@pytest.mark.parametrize("data", ["DigitsDataModule", "FakeDataModule"])
def test_a_fit_by_short_names_saves_a_checkpoint_that_loads(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    more = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", *FAST[1:], *BAR]
    few = ["--trainer.limit_val_batches=1", "--data.batch_size=4"]
    shape = ["--data.in_channels=1"] if data == "FakeDataModule" else []
    names = ["--model", "SEResNetModule", "--data", data]
    cli = LightningCLI(args=["fit", "--seed_everything=0", *names, *QUICK, *more, *few, *shape])
    cli.trainer.save_checkpoint("last.ckpt")
    again = se_lightning.SEResNetModule.load_from_checkpoint("last.ckpt", weights_only=True)
    assert again.hparams.depth == [1]
    assert cli.datamodule.batch_size == 4


IMPORTS = {
    "the package": "import se_lightning",
    "one module": "from se_lightning import SEResNetModule",
    "one datamodule": "from se_lightning import DigitsDataModule",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", IMPORTS.values(), ids=IMPORTS)
def test_one_import_after_the_command_line_of_lightning_is_enough(line):
    script = f"from pytorch_lightning.cli import LightningCLI\n{line}\nLightningCLI()"
    names = ["--model", "SEDenseNetModule", "--data", "MNISTDataModule"]
    names += ["--trainer.callbacks+=ExcitationHistogram"]
    command = [sys.executable, "-c", script, "fit", *names, "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    config = yaml.safe_load(done.stdout)
    assert config["trainer"]["callbacks"][0]["class_path"] == "se_lightning.ExcitationHistogram"
    assert config["data"]["init_args"]["crop_padding"] == 2


class Plain(InMemoryDataModule):
    """A datamodule of a user's, whose defaults are in the body of its constructor."""

    image_size, mean, std, class_names = 8, 0.5, 0.5, ("a", "b")

    def __init__(self, size: int = 3, **options) -> None:
        super().__init__(**(InMemoryOptions(batch_size=5) | options))


def test_a_subclass_without_declared_defaults_keeps_those_of_its_constructor():
    assert list(inspect.signature(Plain).parameters) == ["size", "options"]
    made = Plain(4)
    assert (made.hparams.size, made.hparams.batch_size, made.hparams.flip) == (4, 5, False)
    assert inspect.signature(se_lightning.DigitsDataModule).parameters["batch_size"].default == 64
