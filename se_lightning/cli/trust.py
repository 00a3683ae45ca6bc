"""What a config that was not typed on this command line may run; see docs/security.md.

A `_target_` is a function that Hydra calls, and some of Hydra's own settings are too. The directory
of a run that is resumed, or a folder of configs, may come from somebody else.
"""

import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from se_lightning.cli.command import Command, key_of

__all__ = ["carried_trust", "refuse_targets", "refuse_untrusted"]

# Where the functions and classes are defined that a target may be.
_MODULES = (
    "se_lightning.",
    "pytorch_lightning.",
    "torch.optim.",
    "torchvision.models.",
    "torchvision.transforms.",
)
# Parts of the above that start processes or read files of any kind.
_NOT_MODULES = (
    "se_lightning.atomic.",
    "se_lightning.cli.",
    "pytorch_lightning.cli.",
    "pytorch_lightning.utilities.",
)
_INSTALLED = {"site-packages", "dist-packages"}
_HYDRA_KEYS = (
    "hydra.run",
    "hydra.sweep",
    "hydra.job.name",
    "hydra.job.num",
    "hydra.job.chdir",
    "hydra.job.config.override_dirname",
    "hydra.mode",
    "hydra.output_subdir",
    "hydra.verbose",
    "hydra.launcher",
    "hydra.sweeper",
    "hydra/launcher",
    "hydra/sweeper",
)


def refuse_untrusted(cfg: DictConfig) -> None:
    """Refuse targets other than parts of a training, if the config came from a folder.

    Allowed are this package, Lightning, optimizers and networks of torch and torchvision, and
    classes of any module that are callbacks, loggers, modules, datamodules and the like. A folder
    that this command line names may also call what is defined in a user's own files: code that is
    neither Python's nor installed.

    Raises:
        ValueError: If a target is refused.
    """
    if cfg.trust is None:
        sources = HydraConfig.get().runtime.config_sources
        checked = any(source.provider == "command-line" for source in sources)
    else:
        checked = not cfg.trust
    if not checked:
        return
    refuse_targets(
        cfg,
        "a folder of configs or a resumed run",
        "If you trust that folder, pass trust=true.",
        own=cfg.trust is None,
    )


def refuse_targets(cfg: DictConfig, source: str, advice: str, *, own: bool = False) -> None:
    """Refuse targets that are no part of a training.

    Args:
        cfg: A config.
        source: Where it comes from, for the message.
        advice: What to do, for the message.
        own: Whether it may call what is defined in a user's own files.

    Raises:
        ValueError: If a target is refused.
    """
    for key, target in _targets(cfg):
        if not _is_known(target) and not (own and _is_own(target)):
            raise ValueError(
                f"`{key}` (={target!r}) comes from {source}, and is no part of a training that is "
                f"known. {advice}"
            )


def carried_trust(recorded: Command, changes: Command) -> str:
    """Return the override of `trust` for a recorded command that is resumed with changes.

    Raises:
        ValueError: If the command sets something of Hydra's that could run code, and the changes
            do not trust it.
    """
    trust = changes.value("trust") or "false"
    if trust != "true":
        _refuse_settings(recorded)
    return f"trust={trust}"


def _refuse_settings(recorded: Command) -> None:
    for override in recorded.overrides:
        key = key_of(override)
        is_hydras = key.partition(".")[0].partition("/")[0] == "hydra"
        known = any(key == name or key.startswith(f"{name}.") for name in _HYDRA_KEYS)
        if is_hydras and (not known or "_target_" in override):
            raise ValueError(
                f"The recorded command sets {override}, which could run code. If you trust its "
                "folder, pass trust=true."
            )


def _targets(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each target, also in lists, which Hydra instantiates too."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        value = node._get_node(key)
        path = f"{name}.{key!s}".lstrip(".")
        if isinstance(value, DictConfig | ListConfig):
            # The node behind an interpolation is checked in its own place.
            if not (value._is_none() or value._is_missing() or value._is_interpolation()):
                yield from _targets(value, path)
        elif key == "_target_":
            yield path, str(node[key])


def _is_known(target: str) -> bool:
    try:
        found = get_object(target)
    except Exception:  # Hydra reports it
        return True
    # Not by the name of the target: `se_lightning.data.base.os.system` is a function of os.
    module = f"{getattr(found, '__module__', '')}."
    if module.startswith(_MODULES) and not module.startswith(_NOT_MODULES):
        return True
    # Imported only here, since the command line answers before torch is imported.
    import pytorch_lightning as pl
    from pytorch_lightning import loggers, plugins, profilers, strategies
    from torch import nn, optim
    from torch.utils import data

    kinds: tuple[type, ...] = (pl.Callback, nn.Module, pl.LightningDataModule, loggers.Logger)
    kinds += (plugins.CheckpointIO, plugins.Precision, profilers.Profiler, strategies.Strategy)
    kinds += (optim.Optimizer, optim.lr_scheduler.LRScheduler, data.Dataset, data.Sampler)
    return inspect.isclass(found) and issubclass(found, kinds)


def _is_own(target: str) -> bool:
    """Return whether a class or function is defined in a user's own files."""
    found = get_object(target)
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None or f"{module.__name__}.".startswith(_MODULES):
        return False
    path = Path(file).resolve()
    python = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
    return not _INSTALLED & {*path.parts} and not any(map(path.is_relative_to, python))
