"""What a model is told about the data: ``num_classes``, ``in_channels``, ``image_size``."""

from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from se_lightning.cli.schema import FROM_DATA
from se_lightning.cli.signatures import taken
from se_lightning.ranks import external_rank, is_further_rank

__all__ = ["fill_in"]


def fill_in(cfg: DictConfig, datamodule: pl.LightningDataModule) -> None:
    """Replace the nulls of the model by what the datamodule says of its data.

    Its attributes count first, then its training set. What neither says is left to the model's
    default.

    Raises:
        ValueError: If the number of classes, or what else the model needs, remains unknown.
    """
    empty = [key for key in FROM_DATA if key in cfg.model and cfg.model[key] is None]
    said = {key: getattr(datamodule, key, None) for key in empty}
    if None in said.values():
        if not is_further_rank() and external_rank() in (None, 0):
            datamodule.prepare_data()
        datamodule.setup("fit")  # it may count its classes there
        seen = _seen(datamodule)
        said = {key: getattr(datamodule, key, None) or seen.get(key) for key in empty}
    model = taken(cfg.model["_target_"])
    for key, value in said.items():
        if value is not None:
            cfg.model[key] = value
        elif key == "num_classes" or (model is not None and key in model.required):
            raise ValueError(
                f"{type(datamodule).__name__} has no attribute `{key}`, which the model needs: "
                f"pass model.{key}=N."
            )
        else:
            with open_dict(cfg):
                del cfg.model[key]


def _seen(datamodule: pl.LightningDataModule) -> dict[str, int]:
    """Return what the training set says: its ``classes``, and the shape of its first image."""
    try:
        dataset: Any = getattr(datamodule.train_dataloader(), "dataset", None)
        if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
            return {}
        item = dataset[0]
    except Exception:  # it may need a trainer, or other keys; then it says nothing
        return {}
    found = {}
    image = item[0] if isinstance(item, list | tuple) and item else None
    if isinstance(image, Tensor) and image.ndim == 3:
        found = {"in_channels": image.shape[0], "image_size": image.shape[2]}
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)  # as torchvision's data sets have it
    return found | ({"num_classes": len(classes)} if isinstance(classes, list | tuple) else {})
