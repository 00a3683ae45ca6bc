"""The folder of a run: the names of its files, its lock, and the state that its files record.

Nothing here imports torch, since folders are checked before Hydra composes the job.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TextIO, cast

from omegaconf import DictConfig, OmegaConf

from se_lightning.atomic import write_text
from se_lightning.cli.run.result import RunResult, as_json, from_json

__all__ = ["MULTIRUN", "RESULT", "RunFolder", "jobs_in", "temporary_folder"]

RESULT = "result.json"
MULTIRUN = "multirun.yaml"  # written by Hydra into the folder of a multirun
_HYDRA = ".hydra"
_LOCK = ".lock"
_CONSOLE = "console.txt"
_CHECKPOINTS = "checkpoints"
# Every name in a run folder; a test compares them with real runs. `{job}.log` is Hydra's log.
_SETUP = {_HYDRA, _LOCK, _CONSOLE, "{job}.log", "hparams.yaml", RESULT}
_TRAINING = {"metrics.csv", "nonfinite.json", "wandb_id", "wandb", _CHECKPOINTS, "excitation"}
_TRAINING |= {"bad_files.txt"}
# Files that a restart in the same folder writes again.
_REWRITTEN = ("hparams.yaml", RESULT, "metrics.csv", "nonfinite.json", "wandb_id")

_claims: dict[Path, TextIO] = {}


class RunFolder:
    """The folder of a run; it need not exist."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

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
        write_text(self.path / RESULT, as_json(result), keep=keep)

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

    def claim(self, key: str = "hydra.run.dir") -> None:
        """Lock the folder until this process ends; ``key`` is the config key of the folder.

        Raises:
            ValueError: If another process holds the lock.
        """
        folder = self.path.absolute()
        if folder in _claims:
            return
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = (folder / _LOCK).open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "just starting"
                file.close()
                raise ValueError(
                    f"{folder} is in use by another run ({holder}). Wait until it ends, or choose "
                    f"another folder with {key}=DIR."
                ) from None
            except OSError:
                break  # a file system without locks
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == (folder / _LOCK).stat().st_ino:
                    break
            file.close()  # the lock of a run that has just ended and removed the file
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _claims[folder] = file
        atexit.register(_release, folder)

    def discard_unused(self, job_name: str) -> None:
        """Remove the folder of a run that stopped before its training started.

        The user's own files stay, and the folder with them.
        """
        if any((self.path / name).exists() for name in _TRAINING):
            return
        shutil.rmtree(self.path / _HYDRA, ignore_errors=True)
        for name in _SETUP - {_HYDRA}:
            (self.path / name.format(job=job_name)).unlink(missing_ok=True)
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


def temporary_folder() -> Path:
    """Return a new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="se_lightning-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _release(folder: Path) -> None:
    file = _claims.pop(folder, None)
    if file is None:
        return
    (folder / _LOCK).unlink(missing_ok=True)
    file.close()
    with contextlib.suppress(OSError):  # not empty: it holds a run
        folder.rmdir()
