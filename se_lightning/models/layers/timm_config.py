"""What timm's tools ask of a network besides its forward pass: its data, and groups of layers."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from se_lightning.models.layers.gate_base import Gate

if TYPE_CHECKING:
    from se_lightning.models.layers.network import ImageNetwork

__all__ = ["layer_groups", "pretrained_cfg"]

# Side of the images: fraction that a center crop keeps, mean and deviation of the data set
# (ImageNet, CIFAR-10, MNIST).
_IMAGENET = (0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = (1.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_MNIST = (1.0, (0.1307,), (0.3081,))
_DATA = {28: _MNIST, 32: _CIFAR}


def pretrained_cfg(network: "ImageNetwork") -> dict[str, Any]:
    """Return timm's description of a network: its images, its first and its last layer.

    There are no published weights, so ``url`` is empty, and mean and deviation are those of the
    data set that the network was designed for.
    """
    side = network.image_size or network.native_size
    crop, mean, std = _DATA.get(network.native_size, _IMAGENET)
    channels = network.in_channels
    if channels != len(mean):  # the same for each channel
        mean = (round(sum(mean) / len(mean), 4),) * channels
        std = (round(sum(std) / len(std), 4),) * channels
    pooled = network.native_map or -(-side // network.reduction)
    smallest = network.min_size
    first = next(path for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    return {
        "url": "",
        "architecture": type(network).__name__,
        "tag": "untrained",
        "num_classes": network.num_classes,
        "input_size": (channels, side, side),
        "min_input_size": (channels, smallest, smallest) if smallest > 1 else None,
        "fixed_input_size": network.image_size is not None,
        "pool_size": (pooled, pooled),
        "interpolation": "bilinear",
        "crop_pct": crop,
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "first_conv": first,
        "classifier": network.classifier_name,
    }


def layer_groups(network: "ImageNetwork", coarse: bool) -> dict[str, Any]:
    """Return the regular expressions of the stem's parameters, and of each stage's or unit's.

    See :meth:`ImageNetwork.group_matcher`.
    """
    stem, *stages = network.steps
    blocks: list[tuple[str, tuple[int]]] = []
    number = -1
    for stage in stages:
        number += coarse
        for path in (unit for layer in stage for unit in _units(network, layer)):
            module = network.get_submodule(path)
            if next(module.parameters(), None) is None:
                continue
            number += not coarse and _has_weights(module)
            blocks.append((f"^{re.escape(path)}\\.", (max(number, 0),)))
    return {"stem": "|".join(f"^{re.escape(path)}\\." for path in stem), "blocks": blocks}


def _units(network: nn.Module, path: str) -> Iterator[str]:
    """Yield the units of a sequence of units, or the module itself."""
    module = network.get_submodule(path)
    if type(module) is nn.Sequential and all(next(unit.children(), None) for unit in module):
        yield from (f"{path}.{name}" for name, _ in module.named_children())
    else:
        yield path


def _has_weights(module: nn.Module) -> bool:
    """Return whether there are weights other than those of gates."""
    gates = {p for m in module.modules() if isinstance(m, Gate) for p in m.parameters()}
    return any(p.ndim > 1 and p not in gates for p in module.parameters())
