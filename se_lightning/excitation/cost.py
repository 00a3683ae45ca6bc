"""Cost of the gates: parameters and multiply-adds per block."""

import math
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_lightning.excitation.recording import run_once
from se_lightning.excitation.taps import require_gates
from se_lightning.models import ExcitationParts

__all__ = ["ExcitationCost", "excitation_cost"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class ExcitationCost(NamedTuple):
    """Cost of one squeeze-and-excitation module, with operations per image.

    Attributes:
        layer: Module path.
        channels: Number of channels, C.
        hidden: Number of hidden units, C / r; 0 for a spatial gate.
        parameters: Parameters of its layers: 2 C^2 / r, plus C + C / r with biases.
        multiply_adds: Multiply-adds of its layers.
        rescaling: C H W additions of the squeeze, if there is one, and C H W multiplications.
        parameter_share: Fraction of the network's parameters.
        operation_share: Fraction of the network's operations.
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
    """Return the cost of each squeeze-and-excitation module of any model, in order of depth.

    FLOPs are multiply-adds, as in the paper: one per product in a convolution or linear layer. The
    additions of the squeeze and the multiplications of the rescaling count one each; with them,
    SE-ResNet-50 has 3.87 and ResNet-50 3.86 billion. Nothing else is counted, in gates or network:
    no biases, activations, normalization, pooling, or layers other than ``nn.Conv*d`` and
    ``nn.Linear``.

    Args:
        model: Model with gates of this package, timm or torchvision.
        images: Input of the model, on its device; its size determines the operations per image.

    Raises:
        ValueError: If the model has no squeeze-and-excitation module.

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
    """Return the multiply-adds per image by layer, and those of squeeze and rescaling by path."""
    operations: Counter[nn.Module] = Counter()
    elements: Counter[str] = Counter()

    def layer_hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The weight is (out, in / groups, *kernel) or (out, in); each output value uses one `out`.
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
        # The input of the first layer is smaller only if there was something to squeeze.
        elements[path] += entered if inputs[0].numel() < entered else 0

    def rescale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements[path] += output.numel()

    first = parts.expand if parts.reduce is None else parts.reduce
    return [
        parts.module.register_forward_pre_hook(enter),
        first.register_forward_pre_hook(squeeze),
        parts.module.register_forward_hook(rescale),
    ]
