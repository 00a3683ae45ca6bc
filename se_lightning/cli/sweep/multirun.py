"""The points of a multirun, before the first is run: do any two of them train the same network?

A ratio that a divisor rounds away, or that the gate has no use for, compares a network with itself.
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["Multirun", "composed", "refuse_equal_networks"]

# What the data set says later, the same for all points that share it.
_SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": 32}


@dataclass(frozen=True)
class Multirun:
    """A multirun as its command line composes, before Hydra runs it.

    Attributes:
        options: the command line as Hydra parses it.
        config: what all jobs share, with the node ``hydra``.
        fixed: the overrides that all jobs share.
        swept: those with several values.
    """

    options: Any
    config: DictConfig
    fixed: list[str]
    swept: list[Override]

    @property
    def is_basic(self) -> bool:
        """Whether Hydra itself chooses the points and runs them one after the other."""
        return self.chooses_first and self._target("launcher").endswith(".BasicLauncher")

    @property
    def chooses_first(self) -> bool:
        """Whether all points are known before the first is run."""
        return self._target("sweeper").endswith(".BasicSweeper")

    def _target(self, part: str) -> str:
        return str(self.config.hydra[part].get("_target_", ""))

    def compose(self, overrides: list[str]) -> DictConfig:
        """Compose the config of a job, by the same functions by which Hydra will."""
        with initialize_config_module("se_lightning.conf", version_base="1.3"):
            return compose(_name(self.options), _searched(self.options) + overrides)

    def points(self) -> Iterator[DictConfig]:
        """Compose the config of each job; of none where the sweeper chooses as it goes."""
        if not self.chooses_first or self.config.jobs.trials is not None:
            return
        # In the order of Hydra's, in which a later value of a key replaces an earlier one.
        given = OverridesParser.create().parse_overrides(_params(self.config))
        given += OverridesParser.create().parse_overrides(self.options.overrides)
        for batch in BasicSweeper.split_arguments(given, max_batch_size=None):
            for overrides in batch:
                yield self.compose(list(overrides))


def composed(argv: list[str]) -> Multirun | None:
    """Compose the multirun of a command line; None if it is no multirun, or Hydra refuses it.

    Raises:
        ValueError: if it is none, and yet says how its jobs are run.
    """
    options = get_args_parser().parse_args(argv[1:])
    several = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
    about_jobs = [o for o in options.overrides if o.startswith("jobs.")]
    if about_jobs and not several:
        raise ValueError(f"{about_jobs[0]} is about the jobs of a multirun: start one with -m.")
    if not several or options.help or options.hydra_help or options.cfg or options.info:
        return None
    try:
        given = OverridesParser.create().parse_overrides(options.overrides)
        alike = [str(o.input_line) for o in given if not o.is_sweep_override()]
        with initialize_config_module("se_lightning.conf", version_base="1.3"):
            config = compose(_name(options), _searched(options) + alike, return_hydra_config=True)
        given = OverridesParser.create().parse_overrides(_params(config)) + given
    except (HydraException, OmegaConfBaseException):
        return None  # Hydra says it, in its own words
    last = {override.get_key_element(): override for override in given}
    fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
    return Multirun(options, config, fixed, [o for o in last.values() if o.is_sweep_override()])


def refuse_equal_networks(multirun: Multirun | None) -> None:
    """Refuse a multirun two of whose points differ in the model's options, but not in the network.

    Points that differ elsewhere (seed, data, optimizer, training options) are no repetition, nor
    are points that are the same in every option: those were asked for.

    Raises:
        ValueError: naming the two jobs and the options that made no difference.
    """
    if multirun is None:
        return
    try:
        points: list[Any] = [OmegaConf.to_container(point) for point in multirun.points()]
    except (HydraException, OmegaConfBaseException):
        return  # Hydra says it, in its own words
    models = {json.dumps(point.get("model"), sort_keys=True, default=str) for point in points}
    if len(models) < 2 or any(point["jobs"]["allow_equal"] for point in points):
        return
    _compare(points)


def _name(options: Any) -> str:
    return options.config_name or "train"


def _searched(options: Any) -> list[str]:
    if not options.config_dir:
        return []
    return [f"hydra.searchpath=[file://{Path(options.config_dir).absolute()}]"]


def _params(config: DictConfig) -> list[str]:
    """Return the overrides that a config of one's own gives the sweeper."""
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]


def _compare(points: list[dict[str, Any]]) -> None:
    from se_lightning.modules.classifier import TrainingOptions

    training = {"optimizer", "lr_scheduler", *TrainingOptions.__annotations__}
    networks: dict[str, tuple[str, str] | None] = {}
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    for job, point in enumerate(points):
        options = point.get("model") or {}
        model = {key: value for key, value in options.items() if key not in training}
        rest = point | {"model": {key: options.get(key) for key in training}}
        text = json.dumps(model, sort_keys=True, default=str)
        if text not in networks:
            networks[text] = _network(model)
        network = networks[text]
        if network is None:
            continue
        key = (json.dumps(rest, sort_keys=True, default=str), network[0])
        first, other_text = seen.setdefault(key, (job, text))
        if other_text != text:
            other = json.loads(other_text)
            differing = [k for k in {**other, **model} if str(model.get(k)) != str(other.get(k))]
            sides = (" ".join(f"model.{k}={m.get(k)}" for k in differing) for m in (other, model))
            raise ValueError(
                f"Jobs {first} and {job} of this multirun train the same network{network[1]}: "
                f"{' and '.join(sides)} make no difference to it. Leave one of them out, or set "
                "jobs.allow_equal=true."
            )


def _network(model: dict[str, Any]) -> tuple[str, str] | None:
    """Return the network's structure, and its gates in words; None where it cannot be known."""
    import torch
    from hydra.utils import instantiate

    from se_lightning.models import hidden_widths

    if not str(model.get("_target_")).startswith("se_lightning."):
        return None  # whose printed structure may leave something out
    filled = {k: _SHAPE[k] if v is None and k in _SHAPE else v for k, v in model.items()}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the job itself says them
            network = instantiate(DictConfig(filled), _convert_="all").backbone
    except Exception:
        return None  # the job itself will say what is wrong with it
    widths = dict.fromkeys(hidden_widths(network).values())
    return repr(network), f" (hidden widths {' '.join(map(str, widths))})" if widths else ""
