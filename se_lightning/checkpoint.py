"""Checkpoints: atomic writing, safe reading, and reconstruction of the model and the data."""

import errno
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from se_lightning import data, modules
from se_lightning.atomic import atomic_path
from se_lightning.lightning import LightningDataModule, LightningModule, TorchCheckpointIO
from se_lightning.models.weights.safe_files import check_sums, read_file, write_file
from se_lightning.models.weights.structure import check_structure
from se_lightning.modules import ImageClassifier
from se_lightning.modules.compiled import plain, rename

__all__ = [
    "AtomicCheckpointIO",
    "check_fits",
    "datamodule_from",
    "model_from",
    "read_checkpoint",
]

log = logging.getLogger(__name__)

_VERSION = re.compile(r"([2-9]|\d\d)\.\d+")  # older versions would be migrated
# Types of a checkpoint's entries, including those in its entry `se_lightning`.
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
_LIKE_WEIGHTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD, Adam and similar optimizers
_PROGRESS = {"epoch_progress", "epoch_loop.batch_progress"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin of Lightning that writes files atomically and never executes their content.

    Lightning writes to ``$TMPDIR`` and moves the file. Across file systems that is a copy, and if
    the process is killed, 0 bytes may replace the last good checkpoint. This plugin writes a
    temporary file in the same folder, and flushes it to disk before renaming it. Only one process
    may write a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: set[Path] = set()  # those with a checkpoint of this run

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint; if that fails, an existing file of this name is kept.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If it holds something that could not be loaded again.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            if path.parent in self._folders and not path.parent.is_dir():
                raise OSError(errno.ENOENT, "The folder was deleted during the run")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
            with atomic_path(path, durable=True, sole_writer=True) as temporary:
                write_file(checkpoint, temporary)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's message hides a full disk
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
        """Read the checkpoint, refusing code unless ``weights_only`` is False."""
        if "://" in str(path) or weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only)
        return read_file(Path(path))


def _unwritten(path: Path, error: OSError) -> OSError:
    kept = "; the previous one is kept" if path.exists() else ""
    return OSError(error.errno, f"{error.strerror}: the checkpoint was not saved{kept}", str(path))


def read_checkpoint(path: str | Path, *, any_module: bool = False) -> dict[str, Any]:
    """Read a Lightning checkpoint of this package without executing anything in it.

    Args:
        path: Path of the file.
        any_module: Also read a checkpoint that does not record its module, as Lightning writes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, is damaged, contains code, or was written by
            another program.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"`ckpt_path` (={path}) is not a file. Runs save RUN_DIR/checkpoints/best.ckpt and "
            "last.ckpt."
        )
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is a torch file, but not a Lightning checkpoint.")
    if any_module:
        checkpoint.setdefault("se_lightning", {})
    if "se_lightning" not in checkpoint:
        raise ValueError(
            f"{path} was not written by a module of se_lightning. Load it in Python with the class "
            "that wrote it."
        )
    _check_entries(checkpoint, path)
    check_sums(path)
    return checkpoint


def _check_entries(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse entries of the wrong type, which would fail later in obscure ways."""
    about = checkpoint["se_lightning"]
    found = {**checkpoint, **(about if isinstance(about, dict) else {})}
    wrong = [key for key, kind in _ENTRIES.items() if not isinstance(found.get(key, kind()), kind)]
    if not wrong:
        wrong = [k for k in _NAMED if not all(map(_is_name, found.get(k, {})))]
    if not wrong and not all(isinstance(t, torch.Tensor) for t in found["state_dict"].values()):
        wrong = ["state_dict"]
    if not wrong and not all(isinstance(s, dict) for s in checkpoint.get("callbacks", {}).values()):
        wrong = ["callbacks"]
    version = checkpoint.get("pytorch-lightning_version", "2.6")
    if not wrong and not _VERSION.match(version):
        wrong = ["pytorch-lightning_version"]
    if wrong:
        raise ValueError(
            f"{path} is damaged, or was not written by a run: its entry `{wrong[0]}` is invalid. "
            "Use another checkpoint."
        )


def _is_name(key: Any) -> bool:
    """Return whether a key can be a parameter; Lightning imports what `_instantiator` names."""
    return isinstance(key, str) and not key.startswith("_")


def check_fits(checkpoint: dict[str, Any], model: ImageClassifier, path: str | Path) -> None:
    """Check that a checkpoint's weights belong to this network.

    Raises:
        ValueError: If parameters or options differ, or the state of training is damaged.
    """
    model.on_load_checkpoint(checkpoint)  # repeats the folding of its gates
    state = dict(checkpoint["state_dict"])
    rename(state)
    saved = {key: tuple(tensor.shape) for key, tensor in state.items()}
    here = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    differing = [key for key in {**here, **saved} if here.get(key) != saved.get(key)]
    if differing:
        key = differing[0]
        there = f"{saved[key]} in the checkpoint" if key in saved else "missing from the checkpoint"
        wanted = f"{here[key]} in the model" if key in here else "missing from the model"
        raise ValueError(
            f"{path} does not match this model: {len(differing)} parameters differ, first {key}, "
            f"which is {there} and {wanted}. Pass the model=... it was trained with."
        )
    _check_structure(checkpoint, model, path)
    if "optimizer_states" in checkpoint:
        _check_training(checkpoint, path)


def _check_training(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse checkpoints from which training cannot resume."""
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
            f"Training cannot resume from {path}: its entry `{missing[0]}` is missing or damaged. "
            "Use another checkpoint, or only its weights: model.weights=..."
        )


def _check_structure(checkpoint: dict[str, Any], model: ImageClassifier, path: str | Path) -> None:
    """Compare what shapes do not show: strides, and the positions and squeezes of gates."""
    try:
        there = dict(checkpoint["se_lightning"].get("structure", {}))
        rename(there)
        check_structure(plain(model.backbone), there, str(path))
    except ValueError as error:
        trained = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        there, here = ({k: repr(v) for k, v in given.items()} for given in (trained, model.hparams))
        differing = ", ".join(
            f"{key}={there.get(key, 'its default')} in the checkpoint and "
            f"{here.get(key, 'its default')} in the model"
            for key in {**there, **here}
            if there.get(key) != here.get(key)
        )
        raise ValueError(f"{error} Differing options: {differing or 'none'}.") from error


def model_from(checkpoint: dict[str, Any], path: str | Path) -> ImageClassifier:
    """Rebuild the LightningModule that wrote the checkpoint, with its weights.

    Raises:
        ValueError: If its class is not one of this package's families, or it cannot be rebuilt.
    """
    name = checkpoint["se_lightning"].get("module")
    kind = getattr(modules, name) if name in modules.__all__ else ImageClassifier
    if kind is ImageClassifier:
        raise ValueError(
            f"{path} was written by {name}, whose network is not part of se_lightning. Choose it "
            "with model=NAME as in training, or load it in Python: "
            "ImageClassifier.load_from_checkpoint(path, backbone=...)."
        )
    bad = [k for k, t in checkpoint["state_dict"].items() if not t.isfinite().all()]
    if bad:
        log.warning(
            "%s has weights that are not finite, in %d tensors: %s.", path, len(bad), bad[0]
        )
    try:
        return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        why = str(error).strip().splitlines()
        raise ValueError(f"Cannot rebuild the {name} of {path}: {' '.join(why[:2])}") from error


def datamodule_from(checkpoint: dict[str, Any], **changes: Any) -> LightningDataModule:
    """Rebuild the datamodule on which the checkpoint was trained.

    The file decides which data set it is, where it lies (``root``), and how images are cut, sized
    and batched. It never starts a download, and the number of workers is chosen for this machine.

    It raises an error later if its classes or images are no longer those of the checkpoint. With
    another ``root``, other images are a warning.

    Args:
        checkpoint: Checkpoint of a run with a datamodule of this package.
        **changes: Arguments that replace the saved ones, such as ``root``.

    Raises:
        ValueError: If it was trained on other data, or the datamodule cannot be rebuilt.
    """
    name = checkpoint["se_lightning"].get("datamodule")
    kind = data.find_datamodule(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"The checkpoint was trained on {name}. Choose a data set with data=...")
    hyper_parameters = checkpoint.get(LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    try:
        datamodule = kind(**{**_local(hyper_parameters), **changes})
    except TypeError as error:
        raise ValueError(
            f"Cannot rebuild the {name} of the checkpoint: {error}. Choose a data set with data=..."
        ) from error
    datamodule.expect(
        checkpoint.get(name, {}),
        strict="root" not in changes,
        remedy="Restore the run's files and options, or choose others: data=NAME data.root=DIR.",
    )
    return datamodule


def _local(hyper_parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a datamodule without those that concern the machine of the run."""
    return {k: v for k, v in hyper_parameters.items() if k not in ("download", "num_workers")}
