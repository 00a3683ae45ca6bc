"""Finding the gates of any model: ours, timm's, torchvision's."""

import warnings
from typing import NamedTuple

from torch import nn

from se_lightning.models.layers.gates import SpatialExcitation, SqueezeExcitation

__all__ = [
    "ExcitationParts",
    "find_excitations",
    "find_gates",
    "hidden_widths",
    "warn_of_single_units",
]

# A squeeze-and-excitation module is known by its children: two layers and the activation between
# them and the product. ours and timm's SEModule; timm's SqueezeExcite; torchvision's.
_SHAPES = (
    ("fc1", "fc2", "gate"),
    ("conv_reduce", "conv_expand", "gate"),
    ("fc1", "fc2", "scale_activation"),
)


class ExcitationParts(NamedTuple):
    """A squeeze-and-excitation module and its parts."""

    module: nn.Module
    reduce: nn.Module | None  # None: a spatial gate, which has a single layer
    expand: nn.Module  # its output, activated, is the gate
    gate: nn.Module

    @property
    def channels(self) -> int:
        """Number of channels of the gate, C; 1 of a spatial gate."""
        return _width(self.expand)

    @property
    def hidden(self) -> int:
        """Number of hidden units; 0 of a spatial gate."""
        return 0 if self.reduce is None else _width(self.reduce)


def _width(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def find_excitations(model: nn.Module) -> dict[str, ExcitationParts]:
    """Return the squeeze-and-excitation modules by their paths, with their parts.

    Paths are those of ``named_modules`` without what ``torch.compile`` puts into them, in the
    order of definition, which in the networks of this package is the order of depth. A concurrent
    gate is two, ``.channel`` and ``.spatial``.
    """
    found = {}
    for name, module in model.named_modules():
        path = ".".join(part for part in name.split(".") if part != "_orig_mod")
        children = dict(module.named_children())
        for reduce, expand, gate in _SHAPES:
            if {reduce, expand, gate} <= children.keys():
                found[path] = ExcitationParts(
                    module, children[reduce], children[expand], children[gate]
                )
        if isinstance(module, SpatialExcitation):
            found[path] = ExcitationParts(module, None, module.conv, module.gate)
    return found


def find_gates(model: nn.Module) -> dict[str, nn.Module]:
    """Return, by the path of each SE module, the submodule whose output is the gate.

    See :func:`find_excitations`.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> list(find_gates(se_resnet20(ratio=4)))[:2]
        ['layer1.0.se', 'layer1.1.se']
    """
    return {path: excitation.gate for path, excitation in find_excitations(model).items()}


def hidden_widths(model: nn.Module) -> dict[str, int]:
    """Return the effective number of hidden units of each channel gate, by module path.

    Example:
        >>> hidden_widths(nn.Sequential(SqueezeExcitation(64, ratio=16)))
        {'0': 4}
    """
    return {
        path: module.fc1.out_channels
        for path, module in model.named_modules()
        if isinstance(module, SqueezeExcitation)
    }


def warn_of_single_units(model: nn.Module) -> None:
    """Warn once, naming them, of gates that are left with a single hidden unit.

    One ReLU unit can scale the channels along one direction only, and where it is dead the gate
    is a constant: the usual reason for an SE network that equals its plain twin.
    """
    single = [path for path, width in hidden_widths(model).items() if width == 1]
    if single:
        ratio = model.get_submodule(single[0]).ratio
        names = ", ".join(single[:3]) + (", ..." if len(single) > 3 else "")
        warnings.warn(
            f"ratio={ratio} leaves one hidden unit in {len(single)} gates ({names}); "
            "a smaller ratio gives them room.",
            stacklevel=2,
        )
