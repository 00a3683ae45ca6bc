"""Finding the gates of any model: ours, timm's, torchvision's."""

import warnings

from torch import nn

from se_lightning.models.gates import SpatialExcitation, SqueezeExcitation

__all__ = ["find_gates", "hidden_widths", "warn_of_single_units"]

# A squeeze-and-excitation module is known by its children: two layers and the activation between
# them and the product. ours and timm's SEModule; timm's SqueezeExcite; torchvision's.
_SHAPES = (
    ("fc1", "fc2", "gate"),
    ("conv_reduce", "conv_expand", "gate"),
    ("fc1", "fc2", "scale_activation"),
)


def find_gates(model: nn.Module) -> dict[str, nn.Module]:
    """Return, by the path of each SE module, the submodule whose output is the gate.

    A concurrent gate is two, ``.channel`` and ``.spatial``.

    Paths are those of ``named_modules``, in the order of definition, which in the networks of
    this package is the order of depth.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> list(find_gates(se_resnet20(ratio=4)))[:2]
        ['layer1.0.se', 'layer1.1.se']
    """
    gates = {}
    for path, module in model.named_modules():
        children = dict(module.named_children())
        for *layers, gate in _SHAPES:
            if gate in children and all(layer in children for layer in layers):
                gates[path] = children[gate]
        if isinstance(module, SpatialExcitation):
            gates[path] = module.gate
    return gates


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
