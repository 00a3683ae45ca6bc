"""The folder of a run: the names of its files, its lock, and the state that its files record.

Nothing here imports torch, since folders are checked before Hydra composes the job.
"""

import atexit
import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from se_lightning.atomic import write_json
from se_lightning.cli.run.lock import claim, claimed, is_ours
from se_lightning.cli.run.result import RunResult, from_json

__all__ = ["MULTIRUN", "RESULT", "RunFolder", "jobs_in", "temporary_folder"]

RESULT = "result.json"
MULTIRUN = "multirun.yaml"  # written by Hydra into the folder of a multirun
_HYDRA = ".hydra"
_LOCK = ".lock"
_CONSOLE = "console.txt"
_CHECKPOINTS = "checkpoints"
_METRICS = "metrics.csv"
# Every name in a run folder; a test compares them with real runs. `{job}.log` is Hydra's log.
_SETUP = {_HYDRA, _LOCK, _CONSOLE, "{job}.log", "hparams.yaml", RESULT}
_TRAINING = {_METRICS, "nonfinite.json", "wandb_id", "wandb", _CHECKPOINTS, "excitation"}
_TRAINING |= {"bad_files.txt"}
# Files that a restart in the same folder writes again.
_REWRITTEN = ("hparams.yaml", RESULT, _METRICS, "nonfinite.json", "wandb_id")


class RunFolder:
    """The folder of a run; it need not exist.

    Everything in it is found relative to it, so that it can be moved and copied.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def relative(self, path: str | Path) -> str:
        """Return a path relative to this folder if it is inside, else as it is."""
        root, full = self.path.resolve(), Path(path).resolve()
        return str(full.relative_to(root) if full.is_relative_to(root) else path)

    @property
    def console(self) -> Path:
        """The file with the output of a job that runs in parallel with others."""
        return self.path / _CONSOLE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, unless the config names another."""
        return self.path / _CHECKPOINTS

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run continues from."""
        return self.checkpoints / "last.ckpt"

    @property
    def has_run(self) -> bool:
        """Whether a run has used the folder."""
        return (self.path / RESULT).exists() or self.checkpoints.exists()

    @property
    def is_multirun(self) -> bool:
        """Whether this is the folder of a multirun."""
        return (self.path / MULTIRUN).exists()

    @property
    def is_composed(self) -> bool:
        """Whether Hydra has written the config of a run here."""
        return (self.path / _HYDRA / "hydra.yaml").exists()

    def hydra(self) -> DictConfig:
        """Return the ``hydra`` node of the run's config."""
        return cast(DictConfig, OmegaConf.load(self.path / _HYDRA / "hydra.yaml").hydra)

    def result(self, *, strict: bool = False) -> RunResult:
        """Return the result; empty if the run has not ended, or its file cannot be read.

        With ``strict``, a damaged file raises a ValueError, and an unreadable one an OSError.
        """
        path = self.path / RESULT
        try:
            return from_json(path.read_bytes())
        except OSError as error:
            if strict and not isinstance(error, FileNotFoundError):
                raise
        except ValueError as error:
            if strict:
                raise ValueError(f"{path} is damaged.") from error
        return {}

    def write_result(self, result: RunResult, *, keep: bool = False) -> None:
        """Write the result; ``keep`` leaves an existing one as it is."""
        write_json(self.path / RESULT, result, keep=keep)

    def epochs_logged(self) -> int:
        """Return the last epoch, from 0, in ``metrics.csv``; 0 without the file."""
        try:
            with (self.path / _METRICS).open(newline="") as file:
                epochs = [row.get("epoch") for row in csv.DictReader(file)]
        except (OSError, ValueError, csv.Error):
            return 0
        return max((int(epoch) for epoch in epochs if epoch and epoch.isdigit()), default=0)

    def discard_result(self) -> None:
        """Remove the result of an earlier attempt."""
        (self.path / RESULT).unlink(missing_ok=True)

    def refuse_used(self) -> None:
        """Raise a ValueError if a run has used the folder."""
        if self.has_run:
            raise ValueError(
                f"{self.path} already holds a run. Choose another folder, or continue an "
                f"interrupted run with resume={self.path}."
            )

    def refuse_foreign(self, job_name: str) -> None:
        """Raise a ValueError if a run here would overwrite files of another program."""
        names = {name.format(job=job_name) for name in (_SETUP | _TRAINING) - {_LOCK}}
        if not _is_of_this_package(self.path / _HYDRA / "hydra.yaml") and not is_ours(
            self.path / _LOCK
        ):
            self._refuse(names, "hydra.run.dir")

    def refuse_foreign_multirun(self, names: Iterable[str]) -> None:
        """Raise a ValueError if a multirun here would overwrite files of another program.

        Args:
            names: Files that a multirun writes, besides the folders of its jobs.
        """
        if not _is_of_this_package(self.path / MULTIRUN):
            jobs = {path.name for path in self.path.glob("[0-9]*") if path.name.isdigit()}
            self._refuse({MULTIRUN, *names, *jobs}, "hydra.sweep.dir")

    def _refuse(self, names: Iterable[str], key: str) -> None:
        foreign = [name for name in sorted(names) if os.path.lexists(self.path / name)]
        if foreign:
            raise ValueError(
                f"{self.path} contains {foreign[0]} from another program, which would be "
                f"overwritten. Choose another folder with {key}=DIR."
            )

    def claim(self, key: str = "hydra.run.dir", *, composed: bool = False) -> None:
        """Lock the folder until this process ends; see :func:`se_lightning.cli.run.lock.claim`."""
        claim(self.path / _LOCK, key, composed=composed)

    def discard_unused(self, job_name: str) -> None:
        """Remove the folder of a run that stopped before its training started.

        What was there before the run stays, and the folder with it.
        """
        if any((self.path / name).exists() for name in _TRAINING):
            return
        before = claimed(self.path)
        names = {name.format(job=job_name) for name in _SETUP}
        for name in names - (before.names if before else frozenset()):
            if name == _HYDRA:
                shutil.rmtree(self.path / name, ignore_errors=True)
            else:
                (self.path / name).unlink(missing_ok=True)
        if before is None or before.created:
            with contextlib.suppress(OSError):  # not empty
                self.path.rmdir()

    def prepare_restart(self) -> None:
        """Remove the files that a restart in the same folder writes again."""
        for name in _REWRITTEN:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # missing, or not empty
            self.checkpoints.rmdir()

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints of a run that cannot continue from them."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def jobs_in(sweep_dir: Path) -> list[RunFolder]:
    """Return the folders of those jobs of a multirun that have a result."""
    return [RunFolder(path.parent) for path in sorted(sweep_dir.glob(f"*/{RESULT}"))]


def _is_of_this_package(recorded: Path) -> bool:
    """Return whether Hydra has recorded a command of this package in a file."""
    with contextlib.suppress(Exception):  # a missing, damaged or foreign file can raise anything
        sources = OmegaConf.load(recorded).hydra.runtime.config_sources
        return any(source.path == "se_lightning.conf" for source in sources)
    return False


def temporary_folder() -> Path:
    """Return a new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="se_lightning-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
