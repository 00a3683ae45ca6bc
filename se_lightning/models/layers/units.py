"""The units of which networks are stacked."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

__all__ = ["is_stack", "repeated_units"]


def is_stack(module: object) -> bool:
    """Return whether a module is a sequence of units, which have layers of their own."""
    return type(module) in (nn.Sequential, nn.ModuleList) and all(
        next(unit.children(), None) is not None
        for unit in module  # type: ignore[attr-defined]
    )


def repeated_units(network: nn.Module) -> list[list[nn.Module]]:
    """Return the units of a network's stacks, those of one structure together.

    A stack counts if two of its units are equal; then all units of their class are returned, also
    those that occur once, such as the first of a stage.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> [len(units) for units in repeated_units(se_resnet20(ratio=4))]
        [3, 1, 2, 1, 2]
    """
    texts = {unit: repr(unit) for stack in _stacks(network) for unit in stack}
    repeated = set()
    for stack in _stacks(network):
        counts = Counter(texts[unit] for unit in stack)
        repeated |= {type(unit) for unit in stack if counts[texts[unit]] > 1}
    groups: dict[str, list[nn.Module]] = {}
    inside: set[nn.Module] = set()
    for unit, text in texts.items():  # outer ones first
        if type(unit) in repeated and unit not in inside:
            inside.update(unit.modules())
            groups.setdefault(text, []).append(unit)
    return list(groups.values())


def _stacks(network: nn.Module) -> Iterator[nn.Sequential | nn.ModuleList]:
    return (module for module in network.modules() if is_stack(module))  # type: ignore[misc]
