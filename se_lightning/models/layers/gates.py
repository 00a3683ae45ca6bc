"""Gates: the squeeze-and-excitation modules."""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from se_lightning.arguments import one_of, positive_integer

__all__ = [
    "ConcurrentExcitation",
    "DoubleSigmoid",
    "SpatialExcitation",
    "SqueezeExcitation",
    "hidden_width",
    "start_at_one",
    "zero_last_layer",
]


class DoubleSigmoid(nn.Module):
    r"""A gate that can enlarge as well as shrink: :math:`2 \sigma(x)`, in [0, 2].

    At 0 it is exactly 1, so that a gate whose last layer is zero is an identity that can learn.

    Shape:
        Any to the same.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return 2 * x.sigmoid()


SQUEEZES: dict[str, Callable[[Tensor], Tensor]] = {
    # mean() and not AdaptiveAvgPool2d, which gave NaN under AMP with channels-last
    # (pytorch/pytorch#43992).
    "avg": lambda x: x.mean((2, 3), keepdim=True),
    "max": lambda x: x.amax((2, 3), keepdim=True),
    # As timm's add_maxpool has it.
    "avgmax": lambda x: 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True),
    "none": lambda x: x,
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
        channels: C.
        ratio: reduction ratio r, at least 1; the width is ``max(1, C // r)``.
        divisor: round the width to the nearest multiple, as timm does with 8; 1 keeps it exact.

    Raises:
        ValueError: naming the argument that does not fit.

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


class SqueezeExcitation(nn.Module):
    r"""Rescales each channel by a gate computed from the whole image's channel means.

    :math:`y = x \cdot \sigma(W_2\, \mathrm{ReLU}(W_1\, z))` with
    :math:`z_c = \frac{1}{HW} \sum_{i,j} x_{cij}` (equations 2 to 4 of the paper). The two layers
    are 1x1 convolutions called ``fc1`` and ``fc2``, as in timm; the sigmoid is the submodule
    ``gate``, so that a forward hook on it sees the excitations.

    Args:
        channels: C.
        ratio: reduction ratio r, at least 1.
        squeeze: over space: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of the two), or
            ``"none"``, which gives each pixel its own excitation (the paper's NoSqueeze).
        gate_activation: ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"hard-sigmoid"``, or
            ``"double-sigmoid"``: twice the sigmoid, with ``fc2`` zero at the start and so a gate
            of exactly 1.
        bias: whether the two layers have biases.
        divisor: round the hidden width to a multiple; 1 keeps ``max(1, C // ratio)``.

    Shape:
        (N, C, H, W) to (N, C, H, W); the gate is (N, C, 1, 1), without a squeeze (N, C, H, W).

    Raises:
        ValueError: naming the argument that does not fit.

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
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.gate = ACTIVATIONS[gate_activation]()
        start_at_one(self)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        z = SQUEEZES[self.squeeze](x)
        return x * self.gate(self.fc2(self.act(self.fc1(z))))

    def extra_repr(self) -> str:  # noqa: D102
        return f"squeeze={self.squeeze}"


class SpatialExcitation(nn.Module):
    r"""Rescales each pixel by a gate computed from its channels: :math:`x \cdot \sigma(w * x)`.

    Args:
        channels: C.
        gate_activation: as in :class:`SqueezeExcitation`.
        bias: whether the 1x1 convolution has a bias.

    Shape:
        (N, C, H, W) to (N, C, H, W); the gate is (N, 1, H, W).

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

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * self.gate(self.conv(x))


class ConcurrentExcitation(nn.Module):
    """Merges the outputs of a channel gate and of a spatial gate over the same input.

    Args:
        channels: C.
        ratio: reduction ratio r of the channel gate.
        merge: ``"sum"``, ``"max"`` or ``"product"`` of the two rescaled maps, element by element.
        squeeze: of the channel gate.
        gate_activation: of both gates.
        bias: whether the layers of both have biases.
        divisor: of the channel gate's hidden width.

    Shape:
        (N, C, H, W) to (N, C, H, W).

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
        self.channel = SqueezeExcitation(
            channels,
            ratio,
            squeeze=squeeze,
            gate_activation=gate_activation,
            bias=bias,
            divisor=divisor,
        )
        self.spatial = SpatialExcitation(channels, gate_activation=gate_activation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return MERGES[self.merge](self.channel(x), self.spatial(x))

    def extra_repr(self) -> str:  # noqa: D102
        return f"merge={self.merge}"


def zero_last_layer(gate: SqueezeExcitation | SpatialExcitation) -> None:
    """Make the gate independent of its input, until it has learned."""
    layer = gate.fc2 if isinstance(gate, SqueezeExcitation) else gate.conv
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def start_at_one(model: nn.Module) -> None:
    """Zero the last layer of each gate with a double sigmoid, which then passes all unchanged."""
    for module in model.modules():
        if not isinstance(module, SqueezeExcitation | SpatialExcitation):
            continue
        if isinstance(module.gate, DoubleSigmoid):
            zero_last_layer(module)
