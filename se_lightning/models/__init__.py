"""Squeeze-and-excitation networks in plain torch.

Each family has a file, with a function for each published network; :func:`list_models` lists them.
"""

import difflib
from typing import Any

from se_lightning.models.bn_inception import *  # noqa: F403
from se_lightning.models.densenet import *  # noqa: F403
from se_lightning.models.inception import *  # noqa: F403
from se_lightning.models.inception_resnet import *  # noqa: F403
from se_lightning.models.layers.feature_info import FeatureInfo, FeatureMap
from se_lightning.models.layers.find import find_excitations, find_gates, hidden_widths
from se_lightning.models.layers.gate_base import DoubleSigmoid, ExcitationParts
from se_lightning.models.layers.gates import (
    ConcurrentExcitation,
    SpatialExcitation,
    SqueezeExcitation,
)
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation
from se_lightning.models.mobilenet import *  # noqa: F403
from se_lightning.models.preact_resnet import *  # noqa: F403
from se_lightning.models.resnet import *  # noqa: F403
from se_lightning.models.resnext import *  # noqa: F403
from se_lightning.models.shake_shake import *  # noqa: F403
from se_lightning.models.shufflenet import *  # noqa: F403
from se_lightning.models.small import *  # noqa: F403
from se_lightning.models.surgery.insert import add_excitation, remove_excitation
from se_lightning.models.vgg import *  # noqa: F403
from se_lightning.models.weights.load import LoadReport, load_weights
from se_lightning.models.wide_resnet import *  # noqa: F403

# Networks and builders: the names defined in the family files, not in the folders next to them.
_NETWORKS: dict[str, Any] = {
    name: value
    for name, value in globals().items()
    if getattr(value, "__module__", "").rpartition(".")[0] == __name__
}
_BUILDERS = {name: value for name, value in _NETWORKS.items() if name.islower()}

__all__ = [
    "ConcurrentExcitation",
    "DoubleSigmoid",
    "Excitation",
    "ExcitationParts",
    "FeatureInfo",
    "FeatureMap",
    "ImageNetwork",
    "LoadReport",
    "SpatialExcitation",
    "SqueezeExcitation",
    "add_excitation",
    "create_model",
    "find_excitations",
    "find_gates",
    "hidden_widths",
    "list_models",
    "load_weights",
    "remove_excitation",
]
__all__ += list(_NETWORKS)


def list_models() -> list[str]:
    """Return the names of all networks.

    Example:
        >>> "se_resnet50" in list_models()
        True
    """
    return sorted(_BUILDERS)


def create_model(name: str, **options: Any) -> ImageNetwork:
    """Build a network by name.

    Args:
        name: Name of a builder; see :func:`list_models`.
        **options: Options of the builder.

    Raises:
        ValueError: If ``name`` is unknown, or an option is refused.

    Example:
        >>> create_model("se_resnet20", ratio=4).num_features
        64
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=3) or list_models()
        raise ValueError(f"There is no model {name!r}. Nearest: {', '.join(near)}.")
    return _BUILDERS[name](**options)
