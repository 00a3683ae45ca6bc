"""Deleting keys whose value is null: ``~trainer.precision``.

Hydra 1.3 says that such a key does not exist, since it looks at the value only.
"""

from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = ["make_deletable"]

_apply: Any = ConfigLoaderImpl._apply_overrides_to_config


def make_deletable() -> None:
    """Let Hydra delete null keys, in this process."""
    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_apply_in_order)  # type: ignore[method-assign]


def _apply_in_order(overrides: list[Override], cfg: DictConfig) -> None:
    for override in overrides:
        if not (override.is_delete() and override.value() is None and _delete_null(override, cfg)):
            _apply([override], cfg)


def _delete_null(override: Override, cfg: DictConfig) -> bool:
    """Delete the key if its value is null; return whether it is deleted."""
    path, _, key = override.key_or_group.rpartition(".")
    node = OmegaConf.select(cfg, path) if path else cfg
    # A list, since `in` is False for the keys of a DictConfig that have no value.
    if not isinstance(node, DictConfig) or key not in list(node):
        return False
    if OmegaConf.select(node, key, throw_on_missing=False) is not None:
        return False
    with open_dict(node):
        del node[key]
    return True
