"""The command line as an immutable value: parsed once and turned back into arguments.

Nothing else in the package splits overrides, quotes values or writes ``sys.argv``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

__all__ = ["GROUPS", "Command", "key_of", "parsed", "quoted", "unquoted", "value_of"]

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
    "experiment",
    "debug",
)
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
    return QuotedString(str(path.absolute()), Quote.double).with_quotes()


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
        parsed = cls(tuple(flags), tuple(_quote_equals(_without_plus(o)) for o in overrides))
        return parsed._with_data_on_top() if parsed.takes_checkpoints_data else parsed

    @classmethod
    def recorded(cls, hydra: Any) -> Self:
        """Return the command that Hydra recorded in the ``hydra`` node of a job or multirun."""
        flags = ["--config-name", str(hydra.job.config_name)]
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                flags += ["--config-dir", source.path]
        # Not resolved: interpolations may refer to nodes outside of `hydra`.
        given: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
        return cls(tuple(flags), (*given["task"], *given["hydra"]))

    @cached_property
    def options(self) -> Any:
        """Hydra's flags as the namespace that its parser returns."""
        return get_args_parser().parse_args(self.argv())

    @property
    def is_multirun(self) -> bool:
        """Whether the command requests several jobs."""
        return self.options.multirun or self.value("hydra.mode") == "MULTIRUN"

    @property
    def takes_checkpoints_data(self) -> bool:
        """Whether the data are those of a checkpoint, whose options are not in the config."""
        trains = self.value("task") in (None, "fit")
        chosen = {"data", "experiment"} & set(map(key_of, self.overrides))
        return not trains and not chosen and self.value("ckpt_path") not in (None, "", "null")

    def _with_data_on_top(self) -> Self:
        """Return the command with ``++data.key=value``, which Hydra accepts for any key."""
        return type(self)(
            self.flags,
            tuple(
                f"++{o.lstrip('+')}" if key_of(o).startswith("data.") and o[:1] != "~" else o
                for o in self.overrides
            ),
        )

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
        if self.options.config_dir:
            names += ["--config-dir", str(Path(self.options.config_dir).absolute())]
        place = (f"hydra.run.dir={quoted(run_dir)}", f"hydra.job.num={number}")
        return type(self)(tuple(names), (*self.of_run().overrides, *changes, *place))

    def compose(
        self, overrides: Sequence[str] | None = None, *, hydra_node: bool = False
    ) -> DictConfig:
        """Compose the config of this command, or of other overrides with the same flags."""
        search = []
        if self.options.config_dir:
            folder = Path(self.options.config_dir).absolute()
            search = [f"hydra.searchpath=[file://{folder}]"]
        chosen = list(self.overrides if overrides is None else overrides)
        with initialize_config_module("se_lightning.conf", version_base="1.3"):
            name = self.options.config_name or "train"
            return compose(name, search + chosen, return_hydra_config=hydra_node)

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


def _quote_equals(override: str) -> str:
    """Quote values with an equals sign, such as Lightning's ``epoch=3.ckpt``, for Hydra's grammar.

    Example:
        >>> _quote_equals("ckpt_path=[a/epoch=0.ckpt,b.ckpt]")
        "ckpt_path=['a/epoch=0.ckpt',b.ckpt]"
    """
    key, _, value = override.partition("=")
    if "=" not in value or set(value) & set("'\"{}()$\\"):
        return override
    inner = value.removeprefix("[").removesuffix("]")
    parts = [f"'{part}'" if "=" in part else part for part in inner.split(",")]
    return f"{key}={value.replace(inner, ','.join(parts))}"


def _is_at(key: str, tops: Sequence[str]) -> bool:
    """Return whether a key is one of these or below one of them."""
    return any(key == top or key.startswith((f"{top}.", f"{top}/", f"{top}@")) for top in tops)
