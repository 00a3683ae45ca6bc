"""Base class of gates, and their parts."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["DoubleSigmoid", "ExcitationParts", "Gate", "add_input", "start_at_one"]


class DoubleSigmoid(nn.Module):
    r"""Activation :math:`2 \sigma(x)`, in [0, 2]: it can amplify a channel as well as attenuate it.

    It is exactly 1 at 0, so a gate whose last layer is zero is an identity that can learn.

    Shape:
        Any shape; the output has the same.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return 2 * x.sigmoid()


class ExcitationParts(NamedTuple):
    """A squeeze-and-excitation module and its parts."""

    module: nn.Module
    reduce: nn.Module | None  # first layer of two; None if there is a single layer
    expand: nn.Module  # last layer; its output, activated, is the gate
    gate: nn.Module  # the activation
    width: int | None = None  # channels of the gate, where ``expand`` has fewer

    @property
    def channels(self) -> int:
        """Number of channels of the gate: C, or 1 for a spatial gate."""
        return self.width or _width(self.expand)

    @property
    def hidden(self) -> int:
        """Number of hidden units; 0 if there is a single layer."""
        return 0 if self.reduce is None else _width(self.reduce)


def _width(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


class Gate(nn.Module, ABC):
    """Base class of gates: modules that rescale a feature map.

    The constructor takes the number of channels, and as keyword arguments those options of
    :class:`Excitation` that the gate has (``se_bias`` as ``bias``) and further options, each
    with a default. A gate with a hidden layer keeps its reduction ratio as ``ratio``.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    @abstractmethod
    def parts(self) -> ExcitationParts | None:
        """Return the gate's layers and activation; None if it is composed of other gates."""

    def from_means(self) -> Callable[[Tensor], Tensor] | None:
        """Return the function from the means over space to the gate, both (N, C, 1, 1).

        With it, :mod:`se_lightning.models.layers.fused.tail` rescales in fewer passes over the map.
        None, the default, if the gate depends on more than the means.
        """
        return None

    @classmethod
    def identity_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to change for a gate that is an identity while its last layer is 0.

        Args:
            options: The options of the gate.

        Raises:
            ValueError: If the gate cannot be an identity.
        """
        if "gate_activation" not in inspect.signature(cls).parameters:
            raise ValueError(
                f"`gate` (={options['gate']!r}) cannot start as an identity: {cls.__name__} has no "
                "option `gate_activation` that could be double-sigmoid."
            )
        return {"gate_activation": "double-sigmoid"}

    def zero_last_layer(self) -> None:
        """Make the gate independent of its input until it has learned."""
        if parts := self.parts():
            for parameter in parts.expand.parameters():
                nn.init.zeros_(parameter)


def add_input(gate: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Add a shortcut around a gate, as its forward hook.

    With a hook, the gate is a step between its neighbors like any other, also where code outside of
    the network calls them one after another.
    """
    return output + inputs[0]


def start_at_one(model: nn.Module) -> None:
    """Zero the last layer of each gate with a double sigmoid, which then is an identity."""
    for module in model.modules():
        if isinstance(module, Gate):
            parts = module.parts()
            if parts and isinstance(parts.gate, DoubleSigmoid):
                module.zero_last_layer()
