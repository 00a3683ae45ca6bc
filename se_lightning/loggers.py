"""Loggers that continue when a run is resumed, and a W&B logger that falls back to offline mode."""

import csv
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

from se_lightning.atomic import write_text
from se_lightning.lightning import CSVLogger, ExperimentWriter, WandbLogger, rank_zero_experiment

__all__ = ["ContinuedCSVLogger", "GracefulWandbLogger", "finish_wandb"]

log = logging.getLogger(__name__)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger that continues the file of a resumed run.

    Lightning's logger deletes an existing file. :class:`se_lightning.ExactState` saves the number
    of rows in each checkpoint, and removes later rows when a run resumes from it.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, created on first use."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    @property
    def rows(self) -> int:
        """Number of logged rows, after all of them have been written to disk."""
        self.experiment.save()
        return self.experiment.rows

    def keep(self, rows: int) -> None:
        """Remove all but the first rows."""
        self.experiment.keep(rows)


class _Rows(ExperimentWriter):
    """Writer that appends to an existing file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self._adopt()

    def _adopt(self) -> None:
        """Continue the file that is there."""
        rows = self._read()
        self.rows = len(rows)
        self.metrics_keys = list(rows[0]) if rows else []

    def _check_log_dir_exists(self) -> None:
        """Do not delete anything."""

    def save(self) -> None:
        logged = len(self.metrics)
        if logged and not self.metrics_keys:
            self._adopt()  # with ddp_spawn, another process has written during the fit
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
        """Write the file atomically."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())


class GracefulWandbLogger(WandbLogger):
    """Lightning's W&B logger, offline if there is no account or no connection.

    If ``WANDB_MODE`` is set, it applies. Otherwise the run is online if W&B has a key (from
    ``wandb login``, ``WANDB_API_KEY`` or a netrc file) and its server responds in time.

    Args:
        project: W&B project.
        save_dir: Folder in which ``wandb/`` is created.
        init_timeout: Seconds to wait for the server.
        id_file: File for the run's id, from which a resumed run continues its W&B run. None starts
            a new W&B run each time.
        **options: Further arguments of ``WandbLogger`` and ``wandb.init``.
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
        self._wandb_init.pop("anonymous", None)  # W&B warns about it, even if None
        self._init_timeout = init_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        if self._experiment is None:
            self._start()
        return self._experiment

    def _start(self) -> None:
        import wandb

        Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
        # Otherwise W&B would print its paths five times per run; one line below replaces that.
        settings = wandb.Settings(silent=True, init_timeout=self._init_timeout)
        self._wandb_init["settings"] = settings
        if self._id_file is not None and self._id_file.is_file():
            self._wandb_init["id"] = self._id_file.read_text().strip()
        why = "set by WANDB_MODE"
        mode = os.environ.get("WANDB_MODE")
        try:
            if mode is None:
                known = wandb.login(prompt=False, verify=False)
                mode, why = (
                    ("online", "") if known else ("offline", "no account; run `wandb login`")
                )
            self._wandb_init["mode"] = mode
            run = super().experiment
        except (wandb.errors.Error, ValueError) as error:
            # No server, or an invalid key: the run must not fail for lack of an upload.
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        if self._id_file is not None:
            write_text(self._id_file, run.id, keep=True)
        if self._wandb_init["mode"] == "online":
            log.info("W&B: %s", run.url)
        elif self._wandb_init["mode"] != "disabled":
            log.info(
                "W&B: offline (%s). Upload later with: wandb sync %s", why, Path(run.dir).parent
            )


def finish_wandb(*, failed: bool) -> None:
    """Finish the W&B run of this process, if any, so that later jobs do not log to it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
