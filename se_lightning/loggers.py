"""Weights & Biases with manners: never a prompt, and no network is no reason to stop."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

__all__ = ["GracefulWandbLogger", "finish_wandb"]

log = logging.getLogger(__name__)


class GracefulWandbLogger(WandbLogger):
    """Lightning's W&B logger: online where there is an account, else offline, with one line.

    ``WANDB_MODE`` decides where it is set. Otherwise the run is online if W&B knows a key (from
    ``wandb login``, ``WANDB_API_KEY`` or a netrc file) and its server answers in time.

    Args:
        project: W&B project.
        save_dir: folder in which ``wandb/`` is made.
        init_timeout: seconds to wait for the server.
        **options: further arguments of ``WandbLogger`` and ``wandb.init``.
    """

    def __init__(
        self,
        project: str = "se_lightning",
        save_dir: str = ".",
        *,
        init_timeout: float = 30,
        **options: Any,
    ) -> None:
        super().__init__(project=project, save_dir=save_dir, **options)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, although it is None
        self._init_timeout = init_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use."""
        if self._experiment is None:
            self._start()
        return self._experiment

    def _start(self) -> None:
        import wandb

        Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
        # silent: W&B's own lines name its files five times a run; ours names them once.
        settings = wandb.Settings(silent=True, init_timeout=self._init_timeout)
        self._wandb_init["settings"] = settings
        why = "as WANDB_MODE says"
        mode = os.environ.get("WANDB_MODE")
        try:
            if mode is None:
                known = wandb.login(prompt=False, verify=False)
                mode, why = ("online", "") if known else ("offline", "no account: `wandb login`")
            self._wandb_init["mode"] = mode
            run = super().experiment
        except (wandb.errors.Error, ValueError) as error:
            # No server, or a key that it does not take: the run is worth more than its upload.
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        if self._wandb_init["mode"] == "online":
            log.info("W&B: %s", run.url)
        elif self._wandb_init["mode"] != "disabled":
            log.info(
                "W&B: offline (%s); to send it later: wandb sync %s", why, Path(run.dir).parent
            )


def finish_wandb(*, failed: bool) -> None:
    """End the W&B run of this process, if there is one, so that no later job writes into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
