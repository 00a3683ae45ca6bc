"""Every file of conf/ composes and matches the signatures of its targets."""

import inspect
import re
from pathlib import Path
from typing import Unpack, get_args, get_origin, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, LightningModule

from se_lightning import SEResNetModule, models
from se_lightning.cli.command import GROUPS
from se_lightning.cli.schema import VALUES
from se_lightning.models import create_model, list_models
from se_lightning.modules import ImageClassifier
from se_lightning.modules.classifier import TRAINING_OPTIONS

# Configs for the networks of other libraries.
LIBRARIES = ("timm", "torchvision")
CONF = Path(__file__).parent.parent / "conf"
OPTIONS = sorted(
    (group.name, path.stem)
    for group in CONF.iterdir()
    if group.is_dir() and group.name != "__pycache__"
    for path in group.glob("*.yaml")
)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        return compose("train", list(overrides))


def nodes(config: dict, path: str = ""):
    """Yield every node with a `_target_`, by its path."""
    if "_target_" in config:
        yield path, dict(config)
    for key, node in config.items():
        if isinstance(node, dict):
            yield from nodes(node, f"{path}.{key}".lstrip("."))


def argument_names(module: type[LightningModule | LightningDataModule]) -> set[str]:
    """Return the names of a module's arguments."""
    parameters = inspect.signature(module).parameters.values()
    names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    for hint in get_type_hints(module.__init__).values():
        if get_origin(hint) is Unpack:
            names |= set(get_type_hints(get_args(hint)[0]))
    return names


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_file_composes_and_matches_its_targets(group, option):
    found = dict(nodes(OmegaConf.to_container(composed(f"{group}={option}"))))
    assert found
    for path, node in found.items():
        target = get_object(node.pop("_target_"))
        node.pop("_convert_", None)
        partial = node.pop("_partial_", None)
        signature = inspect.signature(target)
        assert (signature.bind_partial if partial else signature.bind)(**node), path
        if inspect.isclass(target) and issubclass(target, ImageClassifier | LightningDataModule):
            assert set(node) == argument_names(target), path


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data"])
def test_a_data_file_has_the_defaults_of_its_class(option):
    """Except for the name of the data set, and augmentation that suits its images."""
    node = OmegaConf.to_container(composed(f"data={option}").data, resolve=True)
    kind = get_object(node.pop("_target_"))
    name = {"name": node["name"]} if "name" in node else {}
    shipped, default = kind(**node).hparams, kind(**name).hparams
    differing = {key for key in shipped if key in default and shipped[key] != default[key]}
    assert differing - {"crop_area", "crop_aspect"} <= ({"flip"} if "mnist" in option else set())


@pytest.mark.parametrize("name", list_models())
def test_config_builder_and_module_of_a_network_agree(name, monkeypatch):
    config = composed(f"model={name}", "model.num_classes=10", "model.in_channels=3")
    if "image_size" in config.model:
        config.model.image_size = 28
    plain = OmegaConf.to_container(config.model)
    for training in TRAINING_OPTIONS:
        plain.pop(training)
    with torch.device("meta"):
        module = get_object(plain.pop("_target_"))(**plain)
        oracle = create_model(name, num_classes=10, in_channels=3, ratio=config.model.ratio)
        # The builder's name fixes these.
        fixed = {"depth", "width_factor"} if "wrn" in name else {"depth"}
        same = create_model(name, **{key: plain[key] for key in plain if key not in fixed})
    assert repr(module.backbone) == repr(oracle) == repr(same)


def options_of(network: type[models.ImageNetwork]) -> set[str]:
    """Return the names of a network's arguments, including those passed on to its parents."""
    names: set[str] = set()
    for kind in network.__mro__:
        parameters = inspect.signature(kind.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
        for hint in get_type_hints(kind.__init__).values():
            if get_origin(hint) is Unpack:
                return names | set(get_type_hints(get_args(hint)[0]))
    raise AssertionError(network)


@pytest.mark.parametrize("name", list_models())
def test_a_network_its_module_and_its_config_have_the_same_options(name):
    node = composed(f"model={name}").model
    network = get_type_hints(getattr(models, name))["return"]
    module = get_object(node._target_)
    assert module.network is network
    training = set(TRAINING_OPTIONS)
    assert (
        argument_names(module) - training
        == options_of(network)
        == set(node) - training - {"_target_"}
    )


def test_config_files_and_builders_have_the_same_names():
    found = [option for group, option in OPTIONS if group == "model"]
    assert found == sorted([*list_models(), *LIBRARIES])


def test_the_shipped_config_has_every_parameter_of_its_closed_nodes():
    """Only then is a key that needs a `+` a typo."""
    config = composed()
    for group in ("model", "data", "optimizer", "trainer"):
        target = get_object(config[group]._target_)
        parameters = set(inspect.signature(target).parameters) - {"params", "training"}
        if group in ("model", "data"):
            parameters = argument_names(target)
        missing = parameters - set(config[group]) - {"logger", "callbacks"}
        assert missing == set(), group


def test_the_command_line_knows_every_top_level_key():
    primary = OmegaConf.load(CONF / "train.yaml")
    defaults = [next(iter(entry)) for entry in primary.defaults if entry != "_self_"]
    assert sorted(defaults) == sorted(GROUPS)
    assert set(composed()) <= set(GROUPS) | set(VALUES)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_file_starts_with_a_comment(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]  # Hydra requires it first
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("convert", ["none", "partial", "all"])
def test_the_parts_of_a_composed_config_train_in_a_notebook(tmp_path, monkeypatch, convert):
    """Hydra has no run there, so that `hydra:runtime.output_dir` has no value."""
    monkeypatch.chdir(tmp_path)
    small = ("model.depth=[1]", "model.widths=[8]", "data.color_jitter=[0.1,0.1,0.1,0.0]")
    config = composed("logger=csv", "optimizer=adamw", "lr_scheduler=constant", *small)
    data = instantiate(config.data, _convert_=convert)
    sizes = {"num_classes": data.num_classes, "in_channels": data.in_channels}
    model = instantiate(config.model, **sizes, _convert_=convert)
    parts = {
        "callbacks": [instantiate(node, _convert_=convert) for node in config.callbacks.values()],
        "logger": [instantiate(node, _convert_=convert) for node in config.logger.values()],
    }
    few = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    bar = {"enable_progress_bar": False}
    trainer = instantiate(config.trainer, **parts, **few, **bar, _convert_=convert)
    trainer.fit(model, data)
    folder = Path(config.output_dir)
    assert folder.parent.name == "outputs"
    assert {"checkpoints", "metrics.csv", "excitation"} <= {each.name for each in folder.iterdir()}
    saved = folder / "checkpoints" / "last.ckpt"
    again = type(model).load_from_checkpoint(saved, weights_only=True)
    assert again.hparams.widths == [8]
    state = torch.load(saved, weights_only=True)
    assert state["datamodule_hyper_parameters"]["color_jitter"] == [0.1, 0.1, 0.1, 0.0]
    assert state["optimizer_states"][0]["param_groups"][0]["betas"] in ([0.9, 0.999], (0.9, 0.999))


def test_all_nodes_of_a_config_share_one_folder_and_two_configs_have_two():
    first, second = composed("logger=many_loggers"), composed()
    assert first.trainer.default_root_dir == first.logger.csv.save_dir == first.output_dir
    assert first.callbacks.checkpoint.dirpath == f"{first.output_dir}/checkpoints"
    assert first.logger.wandb.id_file == f"{first.output_dir}/wandb_id"
    assert first.output_dir != second.output_dir
    given = composed("output_dir=here")
    assert given.trainer.default_root_dir == given.logger.csv.save_dir == "here"
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        alone = compose(overrides=["+callbacks=checkpoint"])
    assert alone.callbacks.checkpoint.dirpath == "./checkpoints"


@pytest.mark.parametrize("option", ["fit", "look", "analyze", "export"])
def test_the_folder_of_a_task_is_that_of_the_config(option):
    config = composed(f"task={option}", "output_dir=here")
    assert config.task.get("folder", "here") == "here"


def test_in_another_app_the_folder_is_that_of_its_run(tmp_path, monkeypatch):
    """Its config has no `output_dir`."""
    monkeypatch.setattr(HydraConfig, "instance", staticmethod(lambda *_, **__: running))
    running = HydraConfig.__new__(HydraConfig)
    running.cfg = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        alone = compose(overrides=["+callbacks=checkpoint", "+trainer=cpu"])
        assert alone.callbacks.checkpoint.dirpath == f"{tmp_path}/checkpoints"
        assert alone.trainer.default_root_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("option", "accelerator", "strategy", "devices"),
    [
        ("cpu", "cpu", "auto", 1),
        ("gpu", "gpu", "auto", 1),
        ("mps", "mps", "auto", 1),
        ("ddp", "gpu", "ddp", "auto"),
        ("ddp_sim", "cpu", "ddp", 2),
    ],
)
def test_a_trainer_option_differs_from_the_default_in_its_devices_only(
    option, accelerator, strategy, devices
):
    # Not resolved, since the precision follows from the devices.
    chosen, default = (
        OmegaConf.to_container(composed(word).trainer, resolve=False)
        for word in (f"trainer={option}", "trainer=default")
    )
    found = {"accelerator": accelerator, "strategy": strategy, "devices": devices}
    assert {key: chosen[key] for key in found} == found
    assert {k: v for k, v in chosen.items() if k not in found and k != "default_root_dir"} == {
        k: v for k, v in default.items() if k not in found and k != "default_root_dir"
    }


def test_the_command_line_wins_over_debug_and_debug_over_an_experiment():
    debugged = composed("experiment=fashion_mnist_quick", "debug=default")
    assert (debugged.trainer.max_epochs, debugged.optimizer.lr) == (1, 0.2)
    assert debugged.callbacks == debugged.logger == {}
    given = composed("debug=fdr", "callbacks=ema", "logger=csv", "trainer.max_epochs=3")
    assert given.trainer.max_epochs == 3
    assert given.trainer.fast_dev_run
    assert {"ema", "checkpoint"} <= set(given.callbacks)
    assert set(given.logger) == {"csv"}


def test_another_app_can_use_a_model_file_alone():
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        config = compose(overrides=["+model=se_resnet50"])
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert "${" not in str(plain)
    module = get_object(plain.pop("_target_"))(**plain)
    assert module.backbone.num_features == 2048


def test_the_page_on_python_states_where_the_command_line_has_other_defaults():
    text = " ".join((CONF.parent / "docs" / "python.md").read_text().split())
    config, module = composed(), SEResNetModule(20, ratio=4)
    optimizer = module.configure_optimizers()
    assert module.label_smoothing == 0
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.9)
    assert config.optimizer.lr == 0.1
    assert config.optimizer.momentum == 0.9
    assert config.optimizer.nesterov == optimizer.defaults["nesterov"] is True
    assert "weight decay of 1e-4" in text
    assert optimizer.defaults["weight_decay"] == 1e-4
    for option, value in {
        "model.label_smoothing": config.model.label_smoothing,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "lr_scheduler": config.lr_scheduler._target_.rpartition(".")[2],
    }.items():
        stated = re.search(rf"`{option}=([^`]*)`", text)
        assert stated
        assert stated[1] == value or float(stated[1]) == value
