"""The configs. Hydra imports this package to read them, which registers their resolver."""

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


OmegaConf.register_new_resolver("se_lightning.run_dir", _run_dir, replace=True)
