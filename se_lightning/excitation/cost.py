"""What the gates cost: parameters and multiply-adds, block by block."""

import math
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_lightning.excitation.recording import run_once
from se_lightning.excitation.taps import require_gates
from se_lightning.models import ExcitationParts

__all__ = ["ExcitationCost", "excitation_cost"]

# nn.modules.conv._ConvNd and nn.Linear, and what is derived of them, timm's among others.
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class ExcitationCost(NamedTuple):
    """What one squeeze-and-excitation module costs; operations are for one image.

    Attributes:
        layer: its module path.
        channels: C.
        hidden: hidden units, C / r; 0 of a spatial gate.
        parameters: of its layers; 2 C^2 / r, and C + C / r where they have biases.
        multiply_adds: of its layers.
        rescaling: C H W additions of the squeeze, if it has one, and C H W products.
        parameter_share: fraction of the whole network's parameters.
        operation_share: fraction of the whole network's operations.
    """

    layer: str
    channels: int
    hidden: int
    parameters: int
    multiply_adds: int
    rescaling: int
    parameter_share: float
    operation_share: float


def excitation_cost(model: nn.Module, images: Tensor) -> list[ExcitationCost]:
    """Return what each squeeze-and-excitation module of any model costs, in the order of depth.

    Counted as in the paper, whose FLOPs are multiply-adds: an output value of a convolution or of
    a linear layer takes as many as it has products. To them come the squeeze and the rescaling,
    whose additions and products count one each: that makes SE-ResNet-50's 3.87 of ResNet-50's
    3.86 billion. The rest, of the gates as of the network, is not counted: biases, activations,
    normalisation, pooling, and layers that are no ``nn.Conv*d`` or ``nn.Linear``.

    Args:
        model: with gates of this package, timm or torchvision.
        images: what the model takes, on its device; of this size are the operations of one.

    Raises:
        ValueError: if the model has no squeeze-and-excitation module.

    Example:
        >>> import torch
        >>> from se_lightning.models import se_resnet20
        >>> cost = excitation_cost(se_resnet20(ratio=4), torch.zeros(1, 3, 32, 32))[0]
        >>> cost.parameters == 2 * 16**2 / 4 + 16 + 4, cost.multiply_adds, cost.rescaling
        (True, 128, 32768)
    """
    found = require_gates(model)
    operations, rescaling = _count(model, images, found)
    every_parameter = sum(parameter.numel() for parameter in model.parameters())
    every_operation = sum(operations.values()) + sum(rescaling.values())
    costs = []
    for path, parts in found.items():
        parameters = sum(parameter.numel() for parameter in parts.module.parameters())
        layers = sum(operations[module] for module in parts.module.modules())
        costs.append(
            ExcitationCost(
                path,
                parts.channels,
                parts.hidden,
                parameters,
                layers,
                rescaling[path],
                parameters / every_parameter,
                (layers + rescaling[path]) / every_operation,
            )
        )
    return costs


def _count(
    model: nn.Module, images: Tensor, found: dict[str, ExcitationParts]
) -> tuple[Counter[nn.Module], Counter[str]]:
    """Return one image's multiply-adds by layer, and its squeezes' and rescalings' by path."""
    operations: Counter[nn.Module] = Counter()
    elements: Counter[str] = Counter()

    def layer_hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # (out, in / groups, *kernel), or (out, in): each output value has all but the first.
        operations[layer] += output.numel() * math.prod(layer.weight.shape[1:])

    handles: list[RemovableHandle] = [
        module.register_forward_hook(layer_hook)
        for module in model.modules()
        if isinstance(module, _LAYERS)
    ]
    for path, parts in found.items():
        handles += _watch_rescaling(path, parts, elements)
    run_once(model, images, handles)
    size = len(images)
    return (
        Counter({layer: count // size for layer, count in operations.items()}),
        Counter({path: count // size for path, count in elements.items()}),
    )


def _watch_rescaling(
    path: str, parts: ExcitationParts, elements: Counter[str]
) -> list[RemovableHandle]:
    entered = 0

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal entered
        entered = inputs[0].numel()

    def squeeze(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # What enters the first layer is smaller, unless there is nothing to squeeze or no squeeze.
        elements[path] += entered if inputs[0].numel() < entered else 0

    def rescale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements[path] += output.numel()

    first = parts.expand if parts.reduce is None else parts.reduce
    return [
        parts.module.register_forward_pre_hook(enter),
        first.register_forward_pre_hook(squeeze),
        parts.module.register_forward_hook(rescale),
    ]
