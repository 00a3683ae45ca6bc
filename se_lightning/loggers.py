"""Loggers that a run may be resumed with, and Weights & Biases with manners."""

import csv
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from se_lightning.atomic import write_text

__all__ = ["ContinuedCSVLogger", "GracefulWandbLogger", "finish_wandb"]

log = logging.getLogger(__name__)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, which goes on with the file of a run that is resumed.

    Lightning's begins by deleting the file. :class:`se_lightning.ExactState` notes in each
    checkpoint how many rows there were, and takes later ones out when the run goes on from it.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at first use."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    @property
    def rows(self) -> int:
        """How many rows have been logged, all of them on the disk now."""
        self.experiment.save()
        return self.experiment.rows

    def keep(self, rows: int) -> None:
        """Take out all rows but the first so many."""
        self.experiment.keep(rows)


class _Rows(ExperimentWriter):
    """Appends to the file that is there."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        rows = self._read()
        self.rows = len(rows)
        self.metrics_keys = list(rows[0]) if rows else []

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def save(self) -> None:
        logged = len(self.metrics)
        super().save()
        self.rows += logged

    def keep(self, rows: int) -> None:
        self.metrics = []
        self.rows = rows
        if rows:
            self._write(self._read()[:rows], self.metrics_keys)
        else:
            self.metrics_keys = []
            self._path.unlink(missing_ok=True)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._read(), fieldnames)

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="") as file:
            return list(csv.DictReader(file, restval=""))

    def _write(self, rows: list[dict[str, str]], header: list[str]) -> None:
        """Write the file as a whole: a kill in between leaves the old one."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())


class GracefulWandbLogger(WandbLogger):
    """Lightning's W&B logger: online where there is an account, else offline, with one line.

    ``WANDB_MODE`` decides where it is set. Otherwise the run is online if W&B knows a key (from
    ``wandb login``, ``WANDB_API_KEY`` or a netrc file) and its server answers in time.

    Args:
        project: W&B project.
        save_dir: folder in which ``wandb/`` is made.
        init_timeout: seconds to wait for the server.
        id_file: keeps the run's id; a run that finds one goes on with that W&B run. None: a new
            W&B run each time.
        **options: further arguments of ``WandbLogger`` and ``wandb.init``.
    """

    def __init__(
        self,
        project: str = "se_lightning",
        save_dir: str = ".",
        *,
        init_timeout: float = 30,
        id_file: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(project=project, save_dir=save_dir, **options)
        self._id_file = None if id_file is None else Path(id_file)
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
        if self._id_file is not None and self._id_file.is_file():
            self._wandb_init["id"] = self._id_file.read_text().strip()
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
        if self._id_file is not None:
            write_text(self._id_file, run.id, keep=True)
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
