"""Loggers that continue when a run is resumed, and a W&B logger that falls back to offline mode."""

import csv
import io
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from se_lightning.atomic import write_text
from se_lightning.lightning import CSVLogger, ExperimentWriter, WandbLogger, rank_zero_experiment

__all__ = ["ContinuedCSVLogger", "GracefulWandbLogger", "finish_wandb"]

log = logging.getLogger(__name__)

_PROJECT = "se_lightning"


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
        self._written = self._size()

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0

    def _refresh(self) -> None:
        """Adopt the file if another process has written to it, as with ddp_spawn and ddp_fork."""
        if self._size() != self._written:
            self._adopt()

    def _check_log_dir_exists(self) -> None:
        """Do not delete anything."""

    def save(self) -> None:
        self._refresh()
        logged = len(self.metrics)
        super().save()
        self.rows += logged
        self._written = self._size()

    def keep(self, rows: int) -> None:
        self._refresh()
        self.metrics = []
        self.rows = rows
        if rows:
            self._write(self._read()[:rows], self.metrics_keys)
        else:
            self.metrics_keys = []
            self._path.unlink(missing_ok=True)
            self._written = 0

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
        self._written = self._size()


class GracefulWandbLogger(WandbLogger):
    """Lightning's W&B logger, offline if there is no account or no connection.

    W&B's own settings apply: an argument that is None is taken from its environment variables
    (``WANDB_PROJECT``, ``WANDB_NAME``, ``WANDB_MODE``, ...) or settings files. If they do not set
    the mode, the run is online if W&B has a key (from ``wandb login``, ``WANDB_API_KEY`` or a netrc
    file) and its server responds in time.

    Attributes:
        default_name: Name of a new run if neither ``name`` nor W&B's settings give one.

    Args:
        project: W&B project. None: W&B's setting, or else ``se_lightning``.
        save_dir: Folder in which ``wandb/`` is created.
        init_timeout: Seconds to wait for the server. None: W&B's setting, or else 30.
        id_file: File for the run's id, from which a resumed run continues its W&B run. None starts
            a new W&B run each time.
        **options: Further arguments of ``WandbLogger`` and ``wandb.init``.
    """

    def __init__(
        self,
        project: str | None = None,
        save_dir: str = ".",
        *,
        init_timeout: float | None = None,
        id_file: str | None = None,
        **options: Any,
    ) -> None:
        # Lightning's default would be "lightning_logs".
        named = project or os.environ.get("WANDB_PROJECT") or _PROJECT
        super().__init__(project=named, save_dir=save_dir, **options)
        self._id_file = None if id_file is None else Path(id_file)
        self._wandb_init.pop("anonymous", None)  # W&B warns about it, even if None
        self._init_timeout = init_timeout
        self.default_name: str | None = None
        self._given = {"resume", "mode"} & options.keys()
        if project is not None:
            self._given.add("project")

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
        # Those of wandb.setup() keep variables that have been removed since.
        theirs = wandb.Settings()
        theirs.update_from_system_settings()  # W&B's settings files
        theirs.update_from_env_vars(dict(os.environ))
        self._wandb_init["settings"] = self._settings(theirs)
        if "project" not in self._given:
            self._project = theirs.project or _PROJECT
            self._wandb_init["project"] = self._project
        if "resume" not in self._given and "resume" in theirs.model_fields_set:
            self._wandb_init["resume"] = None
        if self._name is None:
            self._wandb_init["name"] = theirs.run_name or self.default_name
        self._continue()
        mode, why = self._mode(theirs)
        self._wandb_init["mode"] = mode
        try:
            run = super().experiment
        except (wandb.errors.Error, ValueError) as error:
            # No server, or an invalid key: the run must not fail for lack of an upload.
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        self._keep_id(run.id)
        self._say(run, why)

    def _settings(self, theirs: Any) -> Any:
        """Return the settings of the run; W&B's own settings have precedence over the defaults."""
        import wandb

        given = self._wandb_init.get("settings") or {}
        settings = given if isinstance(given, wandb.Settings) else wandb.Settings(**given)
        # Otherwise W&B would print its paths five times per run; one line replaces that.
        defaults: dict[str, Any] = {"silent": True, "init_timeout": 30}
        for name in defaults.keys() - theirs.model_fields_set - settings.model_fields_set:
            setattr(settings, name, defaults[name])
        if self._init_timeout is not None:
            settings.init_timeout = self._init_timeout
        return settings

    def _mode(self, theirs: Any) -> tuple[str, str]:
        """Return the mode, and why it is offline if it is."""
        import wandb

        if self._offline or "mode" in self._given:
            return self._wandb_init.get("mode") or "offline", "set by an option of the logger"
        if "mode" in theirs.model_fields_set:
            place = "WANDB_MODE" if "WANDB_MODE" in os.environ else "W&B's settings"
            return theirs.mode, f"set by {place}"
        try:
            known = wandb.login(prompt=False, verify=False)
        except (wandb.errors.Error, ValueError) as error:
            return "offline", f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return ("online", "") if known else ("offline", "no account; run `wandb login`")

    def _continue(self) -> None:
        """Continue the W&B run of the id file."""
        if self._id_file is None or not self._id_file.is_file():
            return
        project, _, run = self._id_file.read_text().strip().rpartition("/")
        self._wandb_init |= {"id": run, "name": self._name}  # a new name only if it is given
        if project:
            self._project = self._wandb_init["project"] = project

    def _keep_id(self, run: str) -> None:
        """Write the id file, with the project if a resumed run might not be given it again."""
        if self._id_file is None:
            return
        known = "project" in self._given or self._project == _PROJECT
        write_text(self._id_file, run if known else f"{self._project}/{run}", keep=True)

    def _say(self, run: Any, why: str) -> None:
        if run.disabled:
            return
        if not run.offline:
            log.info("W&B: %s", run.url)
            return
        folder = Path(run.dir).parent
        parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))
        # All parts of a resumed run at once: W&B uploads them one after another.
        command = shlex.join(["wandb", "sync", *map(str, parts)])
        log.info("W&B: offline (%s). Upload later with: %s", why, command)


def finish_wandb(*, failed: bool) -> None:
    """Finish the W&B run of this process, if any, so that later jobs do not log to it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
