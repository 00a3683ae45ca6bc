"""Squeeze-and-excitation networks in plain torch.

A family is a file; a published network is a function in it. That function is the registration:
:func:`list_models` reads them.
"""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from se_lightning.models import resnet
from se_lightning.models.gates import Excitation, SqueezeExcitation, hidden_widths
from se_lightning.models.resnet import *  # noqa: F403

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(family, name) for family in (resnet,) for name in family.__all__ if name.islower()
}

__all__ = [
    "Excitation",
    "SqueezeExcitation",
    "create_model",
    "hidden_widths",
    "list_models",
    *resnet.__all__,
]


def list_models() -> list[str]:
    """Return the names of all networks.

    Example:
        >>> "se_resnet50" in list_models()
        True
    """
    return sorted(_BUILDERS)


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a network by name; options are its builder's.

    Raises:
        ValueError: if there is no network of that name (the nearest names are offered) or an
            option does not fit.

    Example:
        >>> create_model("se_resnet20", ratio=4).num_features
        64
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=3) or list_models()
        raise ValueError(f"There is no model {name!r}. Nearest: {', '.join(near)}.")
    return _BUILDERS[name](**options)
