"""Refusing multiruns that train the same network twice.

A ratio that a divisor rounds away, or that the gate does not use, compares a network with itself.
"""

import json
import warnings
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from se_lightning.cli.sweep.multirun import Multirun

__all__ = ["refuse_equal_networks"]

# Values that the data set fills in later, the same for all jobs that share it.
_SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": 32}


def refuse_equal_networks(multirun: Multirun | None) -> None:
    """Check that jobs with different model options have different networks.

    Jobs that differ elsewhere (seed, data, optimizer, training options) are not compared, nor are
    jobs with identical options, since those were requested.

    Raises:
        ValueError: If two jobs have the same network; the message lists the options without effect.
    """
    if multirun is None:
        return
    try:
        points: list[Any] = [OmegaConf.to_container(point) for point in multirun.points()]
    except (HydraException, OmegaConfBaseException):
        return  # Hydra reports it
    models = {json.dumps(point.get("model"), sort_keys=True, default=str) for point in points}
    if len(models) < 2 or any(point["jobs"]["allow_equal"] for point in points):
        return
    _compare(points)


def _compare(points: list[dict[str, Any]]) -> None:
    from se_lightning.modules.classifier import TRAINING_OPTIONS

    training = set(TRAINING_OPTIONS)
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
                f"{' and '.join(sides)} make no difference. Leave one of them out, or set "
                "jobs.allow_equal=true."
            )


def _network(model: dict[str, Any]) -> tuple[str, str] | None:
    """Return the structure of a network and its hidden widths; None if unknown."""
    import torch
    from hydra.utils import get_object, instantiate

    from se_lightning.models import hidden_widths
    from se_lightning.modules import ImageClassifier

    filled = {k: _SHAPE[k] if v is None and k in _SHAPE else v for k, v in model.items()}
    try:
        target = get_object(str(model.get("_target_")))
        # The printed structure of another class may leave options out.
        if target.__module__.partition(".")[0] != ImageClassifier.__module__.partition(".")[0]:
            return None
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the job itself will show them
            network = instantiate(DictConfig(filled), _convert_="all").backbone
    except Exception:
        return None  # the job itself will report the error
    widths = dict.fromkeys(hidden_widths(network).values())
    return repr(network), f" (hidden widths {' '.join(map(str, widths))})" if widths else ""
