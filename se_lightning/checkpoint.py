"""Reading checkpoints: safely, and back into the model and the data that they came from."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule

from se_lightning import data, modules
from se_lightning.models.files import read_file
from se_lightning.models.structure import check_structure
from se_lightning.modules import ImageClassifier

__all__ = ["check_fits", "datamodule_from", "model_from", "read_checkpoint"]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of this package; nothing in the file is run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, is damaged, holds code, or was written by another
            program.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`ckpt_path` (={path}) is not a file. Runs keep theirs as "
            "RUN_DIR/checkpoints/best.ckpt and last.ckpt."
        )
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is a file of torch, but no Lightning checkpoint.")
    if "se_lightning" not in checkpoint:
        raise ValueError(
            f"{path} was not written by a module of se_lightning; load it in Python, with its own "
            "class."
        )
    return checkpoint


def check_fits(checkpoint: dict[str, Any], model: ImageClassifier, path: str | Path) -> None:
    """Check that the checkpoint's weights are those of this network.

    Raises:
        ValueError: naming the first parameter that differs, or the options that do.
    """
    model.on_load_checkpoint(checkpoint)  # folds its gates as those of the checkpoint were
    theirs = {key: tuple(tensor.shape) for key, tensor in checkpoint["state_dict"].items()}
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} is of another network: {len(differing)} parameters differ, the first of them "
            f"{key}, {theirs.get(key, 'absent')} there and {ours.get(key, 'absent')} here. Give "
            "model=... as it was trained."
        )
    _check_structure(checkpoint, model, path)


def _check_structure(checkpoint: dict[str, Any], model: ImageClassifier, path: str | Path) -> None:
    """Compare what shapes do not tell: where a stride or a gate is, what a gate squeezes."""
    try:
        check_structure(model.backbone, checkpoint["se_lightning"].get("structure", {}), str(path))
    except ValueError as error:
        trained = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        there, here = ({k: repr(v) for k, v in given.items()} for given in (trained, model.hparams))
        differing = ", ".join(
            f"{key}={there.get(key, 'its default')} there and {here.get(key, 'its default')} here"
            for key in {**there, **here}
            if there.get(key) != here.get(key)
        )
        raise ValueError(f"{error} The options that differ: {differing or 'none'}.") from error


def model_from(checkpoint: dict[str, Any], path: str | Path) -> ImageClassifier:
    """Rebuild the LightningModule that wrote the checkpoint, with its weights.

    Raises:
        ValueError: if its class is none of this package's families.
    """
    name = checkpoint["se_lightning"]["module"]
    if name == "ImageClassifier" or name not in modules.__all__:
        raise ValueError(
            f"{path} was written by {name}, whose network only its own code knows; load it in "
            "Python: ImageClassifier.load_from_checkpoint(path, backbone=...)."
        )
    kind: type[ImageClassifier] = getattr(modules, name)
    return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def datamodule_from(checkpoint: dict[str, Any], **changes: Any) -> LightningDataModule:
    """Rebuild the datamodule that the checkpoint was trained on.

    Args:
        checkpoint: of a run with a datamodule of this package.
        **changes: arguments that take the place of the saved ones (another ``root``, say).

    Raises:
        ValueError: if it was trained on something else.
    """
    name = checkpoint["se_lightning"]["datamodule"]
    if name not in data.__all__:
        raise ValueError(f"The checkpoint was trained on {name}: name a data set with data=...")
    hyper_parameters = checkpoint[LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY]
    return getattr(data, name)(**{**hyper_parameters, **changes})
