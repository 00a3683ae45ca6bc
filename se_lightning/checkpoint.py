"""Checkpoints: written whole, read safely, and back into the model and the data of theirs."""

import errno
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning import LightningDataModule, LightningModule

from se_lightning import data, modules
from se_lightning.atomic import atomic_path
from se_lightning.models.weights.safe_files import read_file
from se_lightning.models.weights.structure import check_structure
from se_lightning.modules import ImageClassifier

__all__ = [
    "AtomicCheckpointIO",
    "check_fits",
    "datamodule_from",
    "model_from",
    "read_checkpoint",
]


# What a checkpoint's entries are, those of its entry `se_lightning` among them.
_ENTRIES: dict[str, type] = {
    "state_dict": dict,
    "se_lightning": dict,
    "module": str,
    "structure": dict,
    "folded": dict,
    LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: dict,
    LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY: dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "pytorch-lightning_version": str,
}
_NAMED = (
    "state_dict",
    LightningModule.CHECKPOINT_HYPER_PARAMS_KEY,
    LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY,
)
_TRAINING = ("lr_schedulers", "loops", "epoch", "global_step", "pytorch-lightning_version")
_LIKE_WEIGHTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD's and Adam's kind
_PROGRESS = {"epoch_progress", "epoch_loop.batch_progress"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each there as a whole or not at all, and never run.

    Lightning writes into ``$TMPDIR`` and moves the file, which on another file system is a copy: a
    kill leaves 0 bytes under the name of the last good checkpoint. Here the temporary file lies
    beside it, and is on the disk before it takes the name. One process writes a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: set[Path] = set()  # that have been saved into

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write it, and leave what has the name already as it is if that fails.

        Raises:
            OSError: naming the checkpoint, if it can't be written.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            if path.parent in self._folders and not path.parent.is_dir():
                raise OSError(errno.ENOENT, "The folder was deleted while the run went on")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
            with (
                atomic_path(path, durable=True, sole_writer=True) as temporary,
                temporary.open("wb") as file,
            ):
                torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's own words hide a full disk
                raise _unwritten(path, error.__context__) from error
            raise
        except OSError as error:
            raise _unwritten(path, error) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read it; what could run code is refused unless ``weights_only`` is False."""
        if "://" in str(path) or weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only)
        return read_file(Path(path))


def _unwritten(path: Path, error: OSError) -> OSError:
    kept = "; the one saved before is kept" if path.exists() else ""
    return OSError(error.errno, f"{error.strerror}: the checkpoint was not saved{kept}", str(path))


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
    _check_entries(checkpoint, path)
    _check_sums(path)
    return checkpoint


def _check_entries(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse what no run wrote: its readers would stumble over it, each in its own way."""
    about = checkpoint["se_lightning"]
    found = {**checkpoint, **(about if isinstance(about, dict) else {})}
    wrong = [key for key, kind in _ENTRIES.items() if not isinstance(found.get(key, kind()), kind)]
    if not wrong:
        wrong = [k for k in _NAMED if not all(isinstance(n, str) for n in found.get(k, {}))]
    if not wrong and not all(isinstance(t, torch.Tensor) for t in found["state_dict"].values()):
        wrong = ["state_dict"]
    if not wrong and not all(isinstance(s, dict) for s in checkpoint.get("callbacks", {}).values()):
        wrong = ["callbacks"]
    if wrong:
        raise ValueError(
            f"{path} is damaged, or no run has written it: `{wrong[0]}` in it is not what it "
            "should be. Take another checkpoint."
        )


def _check_sums(path: Path) -> None:
    """Hold the tensors against their checksums in the file: torch reads wrong bytes without a word.

    Of a checkpoint of 100 MB that is a tenth of a second.
    """
    if not zipfile.is_zipfile(path):
        return  # of torch before 1.6
    with zipfile.ZipFile(path) as file:
        part = file.testzip()
    if part is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of {part} in it is wrong. Take another checkpoint, "
            "or copy the file again."
        )


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
    if "optimizer_states" in checkpoint:
        _check_training(checkpoint, path)


def _check_training(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse what no training can go on from; the shapes are those of the weights."""
    shapes = {tensor.shape for tensor in checkpoint["state_dict"].values()}
    states = checkpoint["optimizer_states"]
    loop = checkpoint.get("loops", {}).get("fit_loop")
    missing = [key for key in _TRAINING if key not in checkpoint]
    if not isinstance(loop, dict) or not loop.keys() >= _PROGRESS:
        missing.append("loops")
    for state in states or [None]:
        whole = isinstance(state, dict) and {"state", "param_groups"} <= state.keys()
        entries = state["state"].values() if whole else ()
        kept = [e[name] for e in entries for name in _LIKE_WEIGHTS if name in e]
        if not whole or any(tensor.shape not in shapes for tensor in kept):
            missing.append("optimizer_states")
    if missing:
        raise ValueError(
            f"No training can go on from {path}: `{missing[0]}` in it is missing or damaged. Take "
            "another checkpoint, or only its weights: model.weights=..."
        )


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
    name = checkpoint["se_lightning"].get("module")
    if name == "ImageClassifier" or name not in modules.__all__:
        raise ValueError(
            f"{path} was written by {name}, whose network only its own code knows; load it in "
            "Python: ImageClassifier.load_from_checkpoint(path, backbone=...)."
        )
    kind: type[ImageClassifier] = getattr(modules, name)
    try:
        return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        why = str(error).strip().splitlines()
        raise ValueError(
            f"{path} does not rebuild the {name} that it says it is of: {' '.join(why[:2])}"
        ) from error


def datamodule_from(checkpoint: dict[str, Any], **changes: Any) -> LightningDataModule:
    """Rebuild the datamodule that the checkpoint was trained on.

    Args:
        checkpoint: of a run with a datamodule of this package.
        **changes: arguments that take the place of the saved ones (another ``root``, say).

    Raises:
        ValueError: if it was trained on something else.
    """
    name = checkpoint["se_lightning"].get("datamodule")
    kind = data.find_datamodule(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"The checkpoint was trained on {name}: name a data set with data=...")
    hyper_parameters = checkpoint.get(LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    try:
        return kind(**{**hyper_parameters, **changes})
    except TypeError as error:
        raise ValueError(
            f"The checkpoint does not rebuild its {name}: {error}. Name a data set with data=..."
        ) from error
