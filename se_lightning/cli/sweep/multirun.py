"""A multirun as its command line composes, before Hydra runs it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from se_lightning.cli.command import Command, parsed, quoted

__all__ = ["Multirun"]


@dataclass(frozen=True)
class Multirun:
    """A multirun, composed but not started.

    Attributes:
        command: Its command line, with the folder of the multirun fixed.
        config: The config that all jobs share, with the node ``hydra``.
        fixed: The overrides that all jobs share.
        swept: The overrides with several values.
    """

    command: Command
    config: DictConfig
    fixed: list[str]
    swept: list[Override]

    @classmethod
    def composed(cls, command: Command) -> "Multirun | None":
        """Compose the multirun of a command; None if it is a single run or Hydra refuses it.

        Raises:
            ValueError: If a single run has options of a multirun.
        """
        options = command.options
        if options.help or options.hydra_help or options.cfg or options.info:
            return None
        try:
            several = command.is_multirun
            given = _given(command) if several else []
        except (HydraException, OmegaConfBaseException):
            return None  # Hydra reports it
        about_jobs = command.given("jobs")
        if about_jobs and not several:
            raise ValueError(f"{about_jobs[0]} is an option of multiruns: start one with -m.")
        if not several:
            return None
        last = {override.get_key_element(): override for override in given}
        fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
        swept = [o for o in last.values() if o.is_sweep_override()]
        return cls(_with_fixed_folder(command), command.config, fixed, swept)

    @property
    def is_basic(self) -> bool:
        """Whether Hydra itself chooses the jobs and runs them one after another."""
        return self.chooses_first and self._is("launcher", BasicLauncher)

    @property
    def chooses_first(self) -> bool:
        """Whether all jobs are known before the first is run."""
        return self._is("sweeper", BasicSweeper)

    def _is(self, part: str, kind: type) -> bool:
        # By name: Hydra imports its plugins a second time, so the classes are not identical.
        return self.config.hydra[part].get("_target_") == f"{kind.__module__}.{kind.__qualname__}"

    def points(self) -> Iterator[DictConfig]:
        """Compose the config of each job; none if the sweeper chooses them one by one."""
        if not self.chooses_first or self.config.jobs.trials is not None:
            return
        # In Hydra's order: a later value of a key replaces an earlier one.
        given = _given(self.command)
        for batch in BasicSweeper.split_arguments(given, max_batch_size=None):
            for overrides in batch:
                yield self.command.compose(list(overrides))

    def for_jobs(self) -> Command:
        """Return the command of this multirun with the overrides that all jobs share."""
        return replace(self.command, overrides=tuple(self.fixed))


def _given(command: Command) -> list[Override]:
    """Return the overrides that a config gives to the sweeper, then those of the command."""
    params = command.config.hydra.sweeper.get("params") or {}
    return parsed([f"{key}={value}" for key, value in params.items()]) + parsed(command.overrides)


def _with_fixed_folder(command: Command) -> Command:
    """Fix a folder with ``~``, or with a timestamp, which Hydra would compose again."""
    node: Any = command.config.hydra.sweep
    written = str(OmegaConf.to_container(node)["dir"])  # type: ignore[index, call-overload]
    if "${now:" in written or written.startswith("~"):
        return command.with_(f"hydra.sweep.dir={quoted(Path(node.dir).expanduser())}")
    return command
