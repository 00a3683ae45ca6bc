"""Finding the gates of any model: ours, timm's, torchvision's."""

from torch import nn

from se_lightning.models.gates import SpatialExcitation

__all__ = ["find_gates"]

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
