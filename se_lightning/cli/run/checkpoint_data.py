"""The data of a task on a checkpoint: those of the checkpoint, with the command line on top."""

import difflib
import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import pytorch_lightning as pl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from se_lightning import checkpoint, data
from se_lightning.cli.schema import check_arguments, make
from se_lightning.cli.targets import given_keys
from se_lightning.data.base import ImageDataModule

__all__ = ["data_of", "expect", "record_data", "tell_differences"]

log = logging.getLogger(__name__)

Checkpoint = dict[str, Any]

# What a network is trained for; other data take it over where they have such options.
_SHAPES = ("image_size", "in_channels", "num_classes")
_PARAMETERS = pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY


def data_of(cfg: DictConfig, read: Checkpoint, num_classes: int) -> pl.LightningDataModule:
    """Rebuild the data of a checkpoint with what the command line says of data on top.

    ``data=NAME`` chooses the kind of data only. If it is that of the checkpoint, every option that
    is not given is the checkpoint's. Other data keep the size of the network's images, and the
    statistics that normalize them.

    Args:
        cfg: The composed config.
        read: The checkpoint.
        num_classes: Number of classes of its network.

    Raises:
        ValueError: If an option does not exist, has a wrong value, or the network cannot take
            these images.
        MisconfigurationException: If data of the same kind have other classes.
    """
    given = given_keys()
    chosen = "data" in given or "experiment" in given
    said = _said(cfg, given)
    name = read["se_lightning"].get("datamodule")
    kind = data.find_datamodule(name) if isinstance(name, str) else None
    if kind is None and chosen:
        return make(cfg.data, "data", pl.LightningDataModule)
    trained = checkpoint.datamodule_from(read)
    assert isinstance(trained, ImageDataModule)
    if chosen and not _is_same(cfg.data, trained):
        found = _other(cfg, trained, said, num_classes)
        expect(read, found, strict=False)
        tell_differences(found, trained, said, names=_class_names(read))
        return found
    _check_options(trained, said)
    same = checkpoint.datamodule_from(read, **said)
    if chosen:
        expect(read, same, strict=False)  # perhaps moved, or more images
    tell_differences(same, trained, said)
    return same


def expect(read: Checkpoint, datamodule: pl.LightningDataModule, *, strict: bool) -> None:
    """Compare a data set with that of a checkpoint, if they are of one kind."""
    name = type(datamodule).__name__
    if isinstance(datamodule, ImageDataModule) and read["se_lightning"].get("datamodule") == name:
        remedy = "Restore the files, or start a new run from its weights (model.weights=)."
        datamodule.expect(read.get(name, {}), strict=strict, remedy=remedy)


def tell_differences(
    found: pl.LightningDataModule,
    trained: ImageDataModule,
    said: Collection[str] = (),
    names: Collection[str] = (),
) -> None:
    """Warn if images differ in size, statistics or classes from those of the training.

    Args:
        found: The data to be used.
        trained: The data of the checkpoint.
        said: Options that the command line gives, which are no surprise.
        names: Names of the checkpoint's classes; none if they are compared elsewhere.

    Raises:
        ValueError: If the number of channels differs.
    """
    if not isinstance(found, ImageDataModule):
        return
    if found.in_channels != trained.in_channels:
        raise ValueError(
            f"The network takes {trained.in_channels} channels, but the images have "
            f"{found.in_channels}. Choose other data (data=NAME), or leave out data=."
        )
    if found.image_size != trained.image_size:
        level = logging.INFO if "image_size" in said else logging.WARNING
        there = f"{trained.image_size} pixels"
        log.log(level, "Trained on images of %s, run on %d pixels.", there, found.image_size)
    for name in ("mean", "std"):
        here, there = getattr(found, name), getattr(trained, name)
        if not np.allclose(here, there) and name not in said:
            log.warning("Trained on images of %s %s, normalized here with %s.", name, there, here)
    renamed = [pair for pair in zip(found.class_names, names, strict=False) if len({*pair}) > 1]
    if renamed:
        log.warning(
            "The classes have other names than in the training, such as %s instead of %s. They are "
            "compared by their numbers, so their order must be the same.",
            *renamed[0],
        )


def _said(cfg: DictConfig, given: Collection[str]) -> dict[str, Any]:
    """Return the options of the data that the command line or its experiment gives."""
    names = {key.split(".")[1].split("[")[0] for key in given if key.startswith("data.")}
    if "experiment" in given:
        composed = HydraConfig.get()
        loader = GlobalHydra.instance().config_loader()
        choice = [f"data={composed.runtime.choices['data']}"]
        shipped = loader.load_configuration(composed.job.config_name, choice, RunMode.RUN).data
        names |= {key for key in map(str, cfg.data) if cfg.data[key] != shipped.get(key)}
    node: Any = OmegaConf.to_container(cfg.data, resolve=True)
    return {name: node[name] for name in node if name in names and name != "_target_"}


def _is_same(node: DictConfig, trained: ImageDataModule) -> bool:
    """Return whether a node builds the data set that the network was trained on."""
    name = trained.hparams.get("name", node.get("name"))
    return get_object(node._target_) is type(trained) and node.get("name", name) == name


def _other(
    cfg: DictConfig, trained: ImageDataModule, said: Collection[str], num_classes: int
) -> pl.LightningDataModule:
    """Build another data set, with the sizes and statistics of the network."""
    shapes = {"num_classes": num_classes}
    for name in _SHAPES:
        if name in cfg.data and name not in said:
            cfg.data[name] = shapes.get(name, getattr(trained, name, None))
    found = make(cfg.data, "data", pl.LightningDataModule)
    if not isinstance(found, ImageDataModule):
        return found
    kept = [name for name in ("mean", "std") if name not in said]
    if found.in_channels == trained.in_channels:
        for name in kept:
            setattr(found, name, getattr(trained, name))
        log.info("Normalized as in the training, with mean %s and std %s.", found.mean, found.std)
    if found.num_classes != num_classes:
        raise ValueError(
            f"The network has {num_classes} classes, but the data have {found.num_classes}. Choose "
            "data with the same classes, in the same order."
        )
    return found


def _class_names(read: Checkpoint) -> list[str]:
    name = read["se_lightning"].get("datamodule")
    return list(read.get(name, {}).get("data", {}).get("class_names", ()))


def _check_options(trained: ImageDataModule, said: dict[str, Any]) -> None:
    """Refuse options that the checkpoint's data do not have, and values of a wrong type."""
    kind = type(trained)
    for name in said:
        if name not in trained.hparams:
            near = difflib.get_close_matches(name, map(str, trained.hparams), n=1)
            advice = f" Did you mean `data.{near[0]}`?" if near else ""
            raise ValueError(f"{kind.__name__}, the checkpoint's data, has no `{name}`.{advice}")
    check_arguments("data", f"{kind.__module__}.{kind.__qualname__}", said)


def record_data(cfg: DictConfig, found: pl.LightningDataModule) -> None:
    """Put the options of the data into the config, which is logged."""
    kind = type(found)
    if not isinstance(found, ImageDataModule):
        return
    with open_dict(cfg):
        cfg.data = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **found.hparams}
