"""Gates: the squeeze-and-excitation modules.

A gate is a subclass of :class:`Gate` and a row of ``GATES``.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.arguments import one_of, positive_integer
from se_lightning.models.layers.fused import fuses, rescaled
from se_lightning.models.layers.gate_base import (
    DoubleSigmoid,
    ExcitationParts,
    Gate,
    start_at_one,
)

__all__ = [
    "GATES",
    "ConcurrentExcitation",
    "SpatialExcitation",
    "SqueezeExcitation",
    "gate_options",
    "hidden_width",
]


def _mean(x: Tensor) -> Tensor:
    # mean() instead of AdaptiveAvgPool2d, which gave NaN under AMP with channels-last
    # (pytorch/pytorch#43992).
    return x.mean((2, 3), keepdim=True)


def _max(x: Tensor) -> Tensor:
    return x.amax((2, 3), keepdim=True)


def _mean_of_both(x: Tensor) -> Tensor:
    return 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)


def _every_pixel(x: Tensor) -> Tensor:
    return x


# Functions and not lambdas, which TorchScript cannot compile. "avgmax" is timm's add_maxpool.
SQUEEZES: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": _mean,
    "max": _max,
    "avgmax": _mean_of_both,
    "none": _every_pixel,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "hard-sigmoid": nn.Hardsigmoid,
    "double-sigmoid": DoubleSigmoid,
}
MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "product": torch.mul,
}


def hidden_width(channels: int, ratio: float, divisor: int = 1) -> int:
    """Return the number of hidden units of a gate over ``channels`` channels.

    Args:
        channels: Number of channels C.
        ratio: Reduction ratio r, at least 1; the width is ``max(1, C // r)``.
        divisor: Round the width to the nearest multiple, as timm does with 8; 1 keeps it exact.

    Raises:
        ValueError: If ``ratio`` is below 1 or not a finite number, or ``divisor`` is not a
            positive integer.

    Example:
        >>> hidden_width(64, 16), hidden_width(64, 16, divisor=8)
        (4, 8)
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 1 <= ratio < math.inf:
        raise ValueError(
            f"`ratio` (={ratio!r}) must be a number of at least 1; the hidden width of a gate "
            "is C // ratio. The paper uses 16."
        )
    positive_integer("divisor", divisor)
    if divisor == 1:
        return max(1, int(channels // ratio))
    # timm's rule (make_divisible with round_limit=0): to the nearest multiple, halves up.
    nearest = int(channels / ratio + divisor / 2) // divisor * divisor
    return max(divisor, nearest)


class _PooledConv2d(nn.Conv2d):
    """A 1x1 convolution of maps of a single pixel, as a matrix product: a fifth of the time."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)
        return z.view(x.shape[0], self.out_channels, 1, 1)

    def _get_name(self) -> str:  # as checkpoints have it
        return "Conv2d"


class SqueezeExcitation(Gate):
    r"""Squeeze-and-excitation block: rescales each channel by a gate computed from all channels.

    :math:`y = x \cdot \sigma(W_2\, \mathrm{ReLU}(W_1\, z))` with
    :math:`z_c = \frac{1}{HW} \sum_{i,j} x_{cij}` (equations 2 to 4 of the paper). As in timm, the
    two layers are 1x1 convolutions called ``fc1`` and ``fc2``. The sigmoid is the submodule
    ``gate``; a forward hook on it sees the excitations.

    Args:
        channels: Number of channels C.
        ratio: Reduction ratio r, at least 1.
        squeeze: Pooling over space: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of the two), or
            ``"none"``, which computes a gate per pixel (the paper's NoSqueeze).
        gate_activation: ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"hard-sigmoid"``, or
            ``"double-sigmoid"``, which starts at exactly 1: twice the sigmoid, ``fc2`` zeroed.
        bias: Whether the two layers have biases.
        divisor: Round the hidden width to a multiple; 1 keeps ``max(1, C // ratio)``.

    Shape:
        (N, C, H, W) to (N, C, H, W); the gate is (N, C, 1, 1), without a squeeze (N, C, H, W).

    Raises:
        ValueError: If ``ratio`` is below 1, a number is not a positive integer, or a name is
            unknown.

    Example:
        >>> import torch
        >>> SqueezeExcitation(64, ratio=16)(torch.ones(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])

    Reference:
        Hu, Shen, Albanie, Sun, Wu. Squeeze-and-Excitation Networks. arXiv:1709.01507.
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 16,
        *,
        squeeze: str = "avg",
        gate_activation: str = "sigmoid",
        bias: bool = True,
        divisor: int = 1,
    ) -> None:
        super().__init__()
        positive_integer("channels", channels)
        one_of("squeeze", squeeze, SQUEEZES)
        one_of("gate_activation", gate_activation, ACTIVATIONS)
        hidden = hidden_width(channels, ratio, divisor)
        self.ratio = ratio
        self.squeeze = squeeze
        self._squeezed = SQUEEZES[squeeze]  # TorchScript cannot look it up
        conv1x1 = partial(nn.Conv2d, kernel_size=1) if squeeze == "none" else _PooledConv2d
        self.fc1 = conv1x1(channels, hidden, bias=bias)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = conv1x1(hidden, channels, bias=bias)
        self.gate = ACTIVATIONS[gate_activation]()
        start_at_one(self)

    def parts(self) -> ExcitationParts:  # noqa: D102
        return ExcitationParts(self, self.fc1, self.fc2, self.gate)

    def from_means(self) -> Callable[[Tensor], Tensor] | None:  # noqa: D102
        return self.excite if self.squeeze == "avg" else None

    def excite(self, z: Tensor) -> Tensor:
        """Return the gate for a squeeze."""
        return self.gate(self.fc2(self.act(self.fc1(z))))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not torch.jit.is_scripting():
            excite = self.from_means()
            if excite is not None and fuses(x, self):
                return rescaled(x, excite)
        return x * self.excite(self._squeezed(x))

    def extra_repr(self) -> str:  # noqa: D102
        return f"squeeze={self.squeeze}"


class SpatialExcitation(Gate):
    r"""Rescales each pixel by a gate computed from its channels: :math:`x \cdot \sigma(w * x)`.

    Args:
        channels: Number of channels C.
        gate_activation: As in :class:`SqueezeExcitation`.
        bias: Whether the 1x1 convolution has a bias.

    Shape:
        (N, C, H, W) to (N, C, H, W); the gate is (N, 1, H, W).

    Raises:
        ValueError: If ``channels`` is not a positive integer, or the activation is unknown.

    Reference:
        Roy, Navab, Wachinger. Concurrent Spatial and Channel Squeeze & Excitation in Fully
        Convolutional Networks. arXiv:1803.02579.
    """

    def __init__(
        self, channels: int, *, gate_activation: str = "sigmoid", bias: bool = True
    ) -> None:
        super().__init__()
        positive_integer("channels", channels)
        one_of("gate_activation", gate_activation, ACTIVATIONS)
        self.conv = nn.Conv2d(channels, 1, 1, bias=bias)
        self.gate = ACTIVATIONS[gate_activation]()
        start_at_one(self)

    def parts(self) -> ExcitationParts:  # noqa: D102
        return ExcitationParts(self, None, self.conv, self.gate)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * self.gate(self.conv(x))


class ConcurrentExcitation(Gate):
    """Merges the outputs of a channel gate and a spatial gate over the same input.

    Args:
        channels: Number of channels C.
        ratio: Reduction ratio r of the channel gate.
        merge: ``"sum"``, ``"max"`` or ``"product"`` of the two rescaled maps, element by element.
        squeeze: Squeeze of the channel gate.
        gate_activation: Activation of both gates.
        bias: Whether the layers of both gates have biases.
        divisor: Divisor of the channel gate's hidden width.

    Shape:
        (N, C, H, W) to (N, C, H, W).

    Raises:
        ValueError: If ``merge`` is unknown, or :class:`SqueezeExcitation` refuses an argument.

    Reference:
        Roy et al., arXiv:1803.02579 (sum), and arXiv:1808.08127, section III (max, product).
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 16,
        *,
        merge: str = "sum",
        squeeze: str = "avg",
        gate_activation: str = "sigmoid",
        bias: bool = True,
        divisor: int = 1,
    ) -> None:
        super().__init__()
        one_of("merge", merge, MERGES)
        self.merge = merge
        self._merged = MERGES[merge]
        self.channel = SqueezeExcitation(
            channels,
            ratio,
            squeeze=squeeze,
            gate_activation=gate_activation,
            bias=bias,
            divisor=divisor,
        )
        self.spatial = SpatialExcitation(channels, gate_activation=gate_activation, bias=bias)

    def parts(self) -> None:  # noqa: D102
        return None

    @classmethod
    def identity_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        if options["merge"] == "product":
            raise ValueError(
                "`merge` (='product') must be 'sum' or 'max': two gates of 1 make x * x."
            )
        # Two plain sigmoids sum to an identity: x / 2 + x / 2.
        return {} if options["merge"] == "sum" else super().identity_options(options)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._merged(self.channel(x), self.spatial(x))

    def extra_repr(self) -> str:  # noqa: D102
        return f"merge={self.merge}"


# The only list of gates. Names, messages and the options of networks and modules follow from it.
GATES: dict[str, type[nn.Module]] = {
    "channel": SqueezeExcitation,
    "spatial": SpatialExcitation,
    "concurrent": ConcurrentExcitation,
    "none": nn.Identity,
}


def gate_options(gate: str) -> dict[str, Parameter]:
    """Return the options of a gate, by name, from its constructor."""
    parameters = inspect.signature(GATES[gate]).parameters
    return {name: p for name, p in parameters.items() if p.default is not p.empty}
