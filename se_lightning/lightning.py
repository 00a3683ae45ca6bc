"""Lightning, from the package that the user's process has imported.

``pytorch_lightning`` and ``lightning.pytorch`` are the same code under two names, but a Trainer of
one does not accept the modules of the other. All classes of this package derive from
``lightning.pytorch`` if that was imported before, without ``pytorch_lightning``, and else from
``pytorch_lightning``, as always in the command line. Other files import Lightning from here.

Callbacks that derive from ``Callback`` alone work in a Trainer of either package.
Other parts refuse a Trainer that would not recognize them: :func:`check_trainer`.
"""

import logging
import sys
from typing import TYPE_CHECKING, Literal

__all__ = [
    "IN_COMMAND",
    "PACKAGE",
    "CSVLogger",
    "Callback",
    "ExperimentWriter",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "ModelCheckpoint",
    "OptimizerLRScheduler",
    "TorchCheckpointIO",
    "Trainer",
    "TrainerFn",
    "WandbLogger",
    "WeightAveraging",
    "check_trainer",
    "is_lightnings",
    "not_a_loader",
    "rank_zero_experiment",
    "rank_zero_info",
    "warn_of_both",
]

log = logging.getLogger(__name__)

IN_COMMAND = "se_lightning.cli.main" in sys.modules  # whose Trainer is known
PACKAGE: Literal["pytorch_lightning", "lightning.pytorch"] = "pytorch_lightning"
if "lightning.pytorch" in sys.modules and "pytorch_lightning" not in sys.modules and not IN_COMMAND:
    PACKAGE = "lightning.pytorch"

if TYPE_CHECKING or PACKAGE == "pytorch_lightning":
    from lightning_fabric.plugins.io import TorchCheckpointIO
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
    from pytorch_lightning.loggers import CSVLogger, WandbLogger
    from pytorch_lightning.loggers.csv_logs import ExperimentWriter
    from pytorch_lightning.loggers.logger import rank_zero_experiment
    from pytorch_lightning.trainer.states import TrainerFn
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.utilities.rank_zero import rank_zero_info
    from pytorch_lightning.utilities.types import OptimizerLRScheduler
else:
    from lightning.fabric.plugins.io import TorchCheckpointIO
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
    from lightning.pytorch.loggers import CSVLogger, WandbLogger
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter
    from lightning.pytorch.loggers.logger import rank_zero_experiment
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.rank_zero import rank_zero_info
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_OTHER = "lightning.pytorch" if PACKAGE == "pytorch_lightning" else "pytorch_lightning"
_REMEDY = f"import {_OTHER}, and not {PACKAGE}, before se_lightning"

_warned = False


def is_lightnings(thing: object, *names: str) -> bool:
    """Return whether an object is of one of these classes of Lightning, of either package."""
    return any(
        kind.__name__ in names
        and kind.__module__.startswith(("pytorch_lightning.", "lightning.pytorch."))
        for kind in type(thing).__mro__
    )


def check_trainer(part: object, trainer: object) -> None:
    """Refuse a Trainer that would not recognize a part of this package.

    Args:
        part: A datamodule or a callback.
        trainer: A Trainer of any package, or None.

    Raises:
        MisconfigurationException: If the Trainer is that of the other package.
    """
    if is_lightnings(trainer, "Trainer") and not isinstance(trainer, Trainer):
        raise MisconfigurationException(
            f"{type(part).__name__} is a class of {PACKAGE} here, but the Trainer is of {_OTHER}: "
            f"{_REMEDY}."
        )


def not_a_loader(datamodule: object) -> str:
    """Return a message for a datamodule that is iterated over."""
    return (
        f"{type(datamodule).__name__} is a datamodule, not a loader: iterate over its "
        f"train_dataloader(), or pass it to a Trainer of {PACKAGE}. If your Trainer is of "
        f"{_OTHER}, {_REMEDY}."
    )


def warn_of_both(part: object) -> None:
    """Warn once if the Trainer may be of the other package.

    A Trainer refuses a module of the other package before it calls anything of it, and its message
    names neither of the two packages.
    """
    global _warned
    if _OTHER in sys.modules and not _warned:
        _warned = True
        log.warning(
            "%s works in a Trainer of %s, not in one of %s, which is imported too. For the latter, "
            "%s.",
            type(part).__name__,
            PACKAGE,
            _OTHER,
            _REMEDY,
        )
