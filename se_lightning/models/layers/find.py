"""Finding the gates of any model: this package's, timm's, torchvision's."""

import warnings
from collections.abc import Iterator

from torch import nn

from se_lightning.models.layers.gate_base import ExcitationParts, Gate

__all__ = [
    "find_excitations",
    "find_gates",
    "hidden_widths",
    "own_gates",
    "warn_of_single_units",
]

# Children that identify the modules of other libraries: two layers and the activation of the gate.
# In order: timm's SEModule, timm's SqueezeExcite, torchvision's SqueezeExcitation, the SEModule of
# timm's legacy networks and of Cadene's.
_SHAPES = (
    ("fc1", "fc2", "gate"),
    ("conv_reduce", "conv_expand", "gate"),
    ("fc1", "fc2", "scale_activation"),
    ("fc1", "fc2", "sigmoid"),
)


def own_gates(model: nn.Module) -> Iterator[tuple[str, Gate, ExcitationParts]]:
    """Yield the gates of this package, with their paths and parts."""
    for path, module in model.named_modules():
        if isinstance(module, Gate) and (parts := module.parts()):
            yield path, module, parts


def find_excitations(model: nn.Module) -> dict[str, ExcitationParts]:
    """Return the squeeze-and-excitation modules by path, with their parts.

    Paths are those of ``named_modules`` without the components that ``torch.compile`` adds, in
    order of definition, which is the order of depth in this package's networks. A concurrent gate
    counts as two, ``.channel`` and ``.spatial``.
    """
    found = {}
    for name, module in model.named_modules():
        path = ".".join(part for part in name.split(".") if part != "_orig_mod")
        if isinstance(module, Gate):
            if parts := module.parts():
                found[path] = parts
            continue
        children = dict(module.named_children())
        for shape in _SHAPES:
            if set(shape) <= children.keys():
                found[path] = ExcitationParts(module, *(children[child] for child in shape))
    return found


def find_gates(model: nn.Module) -> dict[str, nn.Module]:
    """Return the submodules whose output is the gate, by the path of their SE module.

    See :func:`find_excitations`.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> list(find_gates(se_resnet20(ratio=4)))[:2]
        ['layer1.0.se', 'layer1.1.se']
    """
    return {path: excitation.gate for path, excitation in find_excitations(model).items()}


def hidden_widths(model: nn.Module) -> dict[str, int]:
    """Return the number of hidden units of each gate that has a hidden layer, by module path.

    Example:
        >>> from se_lightning.models import SqueezeExcitation
        >>> hidden_widths(nn.Sequential(SqueezeExcitation(64, ratio=16)))
        {'0': 4}
    """
    return {path: parts.hidden for path, _, parts in own_gates(model) if parts.reduce is not None}


def warn_of_single_units(model: nn.Module) -> None:
    """Warn about gates that are left with a single hidden unit.

    One ReLU unit can scale the channels along one direction only, and if it is dead the gate is a
    constant. This is the usual reason why an SE network is no better than its plain twin.
    """
    single = [path for path, width in hidden_widths(model).items() if width == 1]
    if single:
        ratio = getattr(model.get_submodule(single[0]), "ratio", "C")
        names = ", ".join(single[:3]) + (", ..." if len(single) > 3 else "")
        warnings.warn(
            f"ratio={ratio} leaves one hidden unit in {len(single)} gates ({names}); use a smaller "
            "ratio.",
            stacklevel=2,
        )
