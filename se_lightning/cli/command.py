"""The command line as an immutable value: parsed once and turned back into arguments.

Nothing else in the package splits overrides, quotes values or writes ``sys.argv``.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = ["GROUPS", "ONE_RUN", "Command", "key_of", "parsed", "quoted", "unquoted", "value_of"]

# Groups of the defaults list, which Hydra sets with `group=option` and not with `+group=option`.
GROUPS = (
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "callbacks",
    "logger",
    "task",
    "compile",
    "experiment",
    "debug",
)
_CONFIGS = "se_lightning.conf"
_APP = "se_lightning.cli.main"  # the module of the function that Hydra runs
# Makes a command one run, whatever its config says.
ONE_RUN = "hydra.mode=RUN"
# Keys of a multirun or of the folder of a job, which jobs do not inherit.
_NOT_OF_A_JOB = (
    "jobs",
    "hydra.mode",
    "hydra.sweep",
    "hydra.sweeper",
    "hydra.run",
    "hydra.job.num",
    "hydra.launcher",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.output_subdir",
)


def key_of(override: str) -> str:
    """Return the key of an override, without ``+`` or ``~``.

    Example:
        >>> key_of("+model.ratio=4"), key_of("~callbacks")
        ('model.ratio', 'callbacks')
    """
    return override.lstrip("+~").partition("=")[0]


def value_of(override: str) -> str:
    """Return the value of an override as text, without quotes.

    Example:
        >>> value_of("data.root='/my data'")
        '/my data'
    """
    return unquoted(override.partition("=")[2])


def quoted(path: Path) -> str:
    """Return the absolute path, quoted so that Hydra accepts any characters in it."""
    return _in_quotes(str(path.absolute()))


def unquoted(value: str) -> str:
    """Return a value without its quotes, as Hydra reads it."""
    if value[:1] not in ("'", '"'):
        return value
    try:
        return str(parsed([f"key={value}"])[0].value())
    except HydraException:
        return value  # Hydra reports it when it composes the config


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's own parser, which raises a HydraException."""
    return OverridesParser.create().parse_overrides(list(overrides))


@dataclass(frozen=True)
class Command:
    """A command line of ``python -m se_lightning``.

    Attributes:
        flags: Hydra's flags with their values, e.g. ``-m`` or ``--config-dir DIR``.
        overrides: Overrides such as ``model.ratio=4``, in the order in which they are applied.
    """

    flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Parse the arguments after the program's name; ``+model=x`` becomes ``model=x``."""
        overrides = get_args_parser().parse_intermixed_args(list(arguments)).overrides
        flags = list(arguments)
        for override in reversed(overrides):
            del flags[len(flags) - 1 - flags[::-1].index(override)]
        command = cls(
            tuple(map(_in_home, flags)), tuple(_literal(_without_plus(o)) for o in overrides)
        )
        if command.takes_checkpoints_data:  # Hydra accepts ++ for any key
            on_top = (o if o[0] == "~" else f"++{o.lstrip('+')}" for o in command.given("data"))
            command = cls(command.flags, (*command.without("data").overrides, *on_top))
        return command

    @classmethod
    def recorded(cls, hydra: Any) -> Self:
        """Return the command that Hydra recorded in the ``hydra`` node of a job or multirun."""
        flags = ["--config-name", str(hydra.job.config_name)]
        for source in hydra.runtime.config_sources:
            if source.provider == "main" and source.path != _CONFIGS:
                scheme = "pkg://" if source.get("schema") == "pkg" else ""
                flags += ["--config-path", f"{scheme}{source.path}"]
            if source.provider == "command-line":
                flags += ["--config-dir", source.path]
        # Not resolved: interpolations may refer to nodes outside of `hydra`.
        given: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
        return cls(tuple(flags), (*given["task"], *given["hydra"]))

    @cached_property
    def options(self) -> Any:
        """Hydra's flags as the namespace that its parser returns."""
        return get_args_parser().parse_args(self.argv())

    @cached_property
    def config(self) -> DictConfig:
        """The composed config with the node ``hydra``, without what a multirun varies.

        Raises a HydraException or an OmegaConfBaseException if Hydra refuses the command.
        """
        fixed = [str(o.input_line) for o in parsed(self.overrides) if not o.is_sweep_override()]
        return self._load(fixed, RunMode.MULTIRUN)

    @cached_property
    def is_multirun(self) -> bool:
        """Whether the command requests several jobs, which its config can do as well."""
        return self.options.multirun or self.config.hydra.mode == RunMode.MULTIRUN

    @property
    def takes_checkpoints_data(self) -> bool:
        """Whether the data are those of a checkpoint, whose options are not in the config."""
        trains = self.value("task") in (None, "fit")
        chosen = {"data", "experiment"} & set(map(key_of, self.overrides))
        return not trains and not chosen and self.value("ckpt_path") not in (None, "", "null")

    @property
    def task_overrides(self) -> list[str]:
        """The overrides that are not about Hydra itself."""
        return [o for o in self.overrides if not _is_at(key_of(o), ("hydra",))]

    def value(self, key: str) -> str | None:
        """Return the last value given for a key as text, or None."""
        values = [value_of(override) for override in self.overrides if key_of(override) == key]
        return values[-1] if values else None

    def given(self, *keys: str) -> list[str]:
        """Return the overrides of these keys and of the keys below them."""
        return [override for override in self.overrides if _is_at(key_of(override), keys)]

    def without(self, *keys: str) -> Self:
        """Return the command without the overrides of these keys and of the keys below them."""
        kept = [override for override in self.overrides if not _is_at(key_of(override), keys)]
        return type(self)(self.flags, tuple(kept))

    def with_(self, *overrides: str) -> Self:
        """Return the command with these overrides added, in place of earlier ones of their keys.

        An earlier ``+key=value`` stays, since Hydra needs it to know the key.
        """
        keys = {key_of(override) for override in overrides}
        kept = [o for o in self.overrides if key_of(o) not in keys or o.startswith("+")]
        return type(self)(self.flags, (*kept, *overrides))

    def placed(self) -> Self:
        """Return the command with ``output_dir=DIR`` as Hydra's key for that folder."""
        given = self.given("output_dir")
        if not given:
            return self
        key = "hydra.sweep.dir" if self.is_multirun else "hydra.run.dir"
        return self.without("output_dir").with_(f"{key}={given[-1].partition('=')[2]}")

    def of_run(self) -> Self:
        """Return the command without the keys that only a multirun or its launcher reads."""
        return self.without(*_NOT_OF_A_JOB)

    def for_job(self, run_dir: Path, number: int, *changes: str) -> Self:
        """Return the command of one job of this multirun; ``changes`` are the job's overrides."""
        names = ["--config-name", self.options.config_name or "train"]
        if self.options.config_path:
            names += ["--config-path", self.options.config_path]
        if self.options.config_dir:
            names += ["--config-dir", str(Path(self.options.config_dir).absolute())]
        place = (f"hydra.run.dir={quoted(run_dir)}", f"hydra.job.num={number}", ONE_RUN)
        return type(self)(tuple(names), (*self.of_run().overrides, *changes, *place))

    def compose(self, overrides: Sequence[str] | None = None) -> DictConfig:
        """Compose the config of this command, or of other overrides with the same flags."""
        config = self._load(self.overrides if overrides is None else overrides, RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return config

    def loader(self) -> ConfigLoaderImpl:
        """Return Hydra's loader of the configs that this command can choose from."""
        version.setbase("1.3")
        main = self.options.config_path or f"pkg://{_CONFIGS}"
        search = create_automatic_config_search_path(None, _APP, main)
        if self.options.config_dir:
            folder = f"file://{Path(self.options.config_dir).absolute()}"
            search.prepend("command-line", folder, SearchPathQuery(provider="schema"))
        return ConfigLoaderImpl(search)

    def _load(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        """Compose as Hydra does when it runs the command, without its global state."""
        name = self.options.config_name or "train"
        hydra = Hydra(task_name="se_lightning", config_loader=self.loader())
        return hydra.compose_config(name, list(overrides), mode, from_shell=False)

    def argv(self) -> list[str]:
        """Return the arguments after the program's name: flags first, since callers append."""
        return [*self.flags, *self.overrides]

    def line(self) -> list[str]:
        """Return the full command line that runs this in a separate process."""
        return [sys.executable, "-m", "se_lightning", *self.argv()]

    def install(self) -> None:
        """Write this to ``sys.argv``, which Hydra reads and further ranks run again."""
        sys.argv[1:] = self.argv()


def _without_plus(override: str) -> str:
    grouped = override.startswith("+") and override[1:].partition("=")[0] in GROUPS
    return override[1:] if grouped else override


def _literal(override: str) -> str:
    """Quote a value that Hydra's grammar refuses, so that it is read as it is written.

    The grammar knows few characters outside of quotes: it refuses ``epoch=3.ckpt``, ``~/data`` and
    ``caf\u00e9``. A ``~`` at the beginning becomes the home directory.

    Example:
        >>> _literal("ckpt_path=[a/epoch=0.ckpt,b.ckpt]")
        'ckpt_path=["a/epoch=0.ckpt",b.ckpt]'
    """
    key, _, value = override.partition("=")
    whole, is_folder = unquoted(value), key in ("resume", "jobs.resume")  # with commas, perhaps
    if (whole.startswith("~") and whole != value) or (is_folder and not _is_legal(override)):
        return f"{key}={_in_quotes(whole)}"
    is_list = value.startswith("[") and value.endswith("]")
    if not value or value[0] in "'\"{" or (value[0] == "[" and not is_list) or _is_legal(override):
        return override
    parts = (value[1:-1] if is_list else value).split(",")
    text = ",".join(part if _is_legal(f"{key}={part}") else _in_quotes(part) for part in parts)
    changed = f"{key}=[{text}]" if is_list else f"{key}={text}"
    return changed if _is_legal(changed) else override  # Hydra reports it


def _in_quotes(text: str) -> str:
    return QuotedString(os.path.expanduser(text), Quote.double).with_quotes()


def _is_legal(override: str) -> bool:
    try:
        parsed([override])
    except (HydraException, ValueError):  # ValueError: a number of more than 4300 digits
        return False
    return True


def _in_home(flag: str) -> str:
    """Expand ``~`` in a flag or its value; a shell does so only in separate words."""
    name, equals, value = flag.partition("=")
    return f"{name}{equals}{os.path.expanduser(value)}" if equals else os.path.expanduser(flag)


def _is_at(key: str, tops: Sequence[str]) -> bool:
    """Return whether a key is one of these or below one of them."""
    return any(key == top or key.startswith((f"{top}.", f"{top}/", f"{top}@")) for top in tops)
