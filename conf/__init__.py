"""The configs. Hydra imports this package to read them, which registers their resolvers."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def _run_dir(*, _root_: DictConfig) -> str:
    """Return ``output_dir`` of the config, or Hydra's own in an application without that key.

    ``${hydra:runtime.output_dir}`` could not be resolved outside of a run, as in a notebook.
    """
    folder = OmegaConf.select(_root_, "output_dir")
    if folder is None and HydraConfig.initialized():
        folder = OmegaConf.select(HydraConfig.get(), "runtime.output_dir")
    return "." if folder is None else str(folder)


def _precision(auto: str, *, _parent_: Mapping[str, Any]) -> str | None:
    """Return the precision that suits the devices of the trainer of which this is an argument.

    The command line replaces it, since a run keeps the precision in which it began.
    """
    from se_lightning.cli.run.hardware import suited_precision  # imports torch

    return suited_precision(_parent_)[0]


OmegaConf.register_new_resolver("se_lightning.run_dir", _run_dir, replace=True)
OmegaConf.register_new_resolver("se_lightning.precision", _precision, replace=True)
