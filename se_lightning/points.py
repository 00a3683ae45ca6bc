"""The points of a multirun, before the first is run: do any two of them train the same network?

A ratio that a divisor rounds away, or that the gate has no use for, compares a network with itself.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["refuse_equal_networks"]

# What the data set says later, the same for all points that share it.
_SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": 32}


def refuse_equal_networks(argv: list[str]) -> None:
    """Refuse a multirun two of whose points differ in the model's options, but not in the network.

    Points that differ elsewhere (seed, data, optimizer, training options) are no repetition, nor
    are points that are the same in every option: those were asked for.

    Raises:
        ValueError: naming the two jobs and the options that made no difference.
    """
    arguments = get_args_parser().parse_args(argv[1:])
    several = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    if not several or arguments.help or arguments.hydra_help or arguments.cfg or arguments.info:
        return
    try:
        points = list(_points(arguments))
    except (HydraException, OmegaConfBaseException):
        return  # Hydra says it, in its own words
    models = {json.dumps(point.get("model"), sort_keys=True, default=str) for point in points}
    if len(models) < 2 or any(point["jobs"]["allow_equal"] for point in points):
        return
    _compare(points)


def _points(arguments: Any) -> Iterator[dict[str, Any]]:
    """Compose the config of each job, by the same functions by which Hydra will."""
    searched = []
    if arguments.config_dir:
        searched.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]")
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        name = arguments.config_name or "train"
        parsed = OverridesParser.create().parse_overrides(arguments.overrides)
        fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        sweeper = compose(name, searched + fixed, return_hydra_config=True).hydra.sweeper
        if not str(sweeper.get("_target_", "")).endswith(".BasicSweeper"):
            return  # it chooses its points as it goes
        swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides(swept) + parsed
        for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
            for overrides in batch:
                config = compose(name, searched + list(overrides))
                yield OmegaConf.to_container(config)  # type: ignore[misc]


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
