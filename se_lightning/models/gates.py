"""Gates: the squeeze-and-excitation block, and the options that a whole network shares."""

import math
import warnings
from dataclasses import dataclass
from numbers import Real

from torch import Tensor, nn

__all__ = ["Excitation", "SqueezeExcitation", "hidden_widths", "warn_of_single_units"]


def _positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a whole number of at least 1.")


@dataclass(frozen=True)
class Excitation:
    """The options of a network's gates, checked once and shared by all its blocks.

    Args:
        ratio: reduction ratio r; the hidden width is ``max(1, C // r)``. At least 1.
        gate: ``"channel"`` for squeeze-and-excitation, ``"none"`` for the plain twin.
        bias: whether the two excitation layers have biases (the released nets do, the ablations
            of the paper's section 6 do not).
        divisor: round the hidden width to the nearest multiple, as timm does with 8.
            1 keeps it exact.

    Raises:
        ValueError: for a ratio below 1 or not a number, an unknown gate, a bad divisor.

    Example:
        >>> Excitation(ratio=16).hidden(64), Excitation(ratio=16, divisor=8).hidden(64)
        (4, 8)
    """

    ratio: float = 16
    gate: str = "channel"
    bias: bool = True
    divisor: int = 1

    def __post_init__(self) -> None:
        ratio = self.ratio
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 1 <= ratio < math.inf:
            raise ValueError(
                f"`ratio` (={ratio!r}) must be a number of at least 1; the hidden width of a gate "
                "is C // ratio. The paper uses 16."
            )
        if self.gate not in GATES:
            raise ValueError(f"`gate` (={self.gate!r}) must be one of {', '.join(GATES)}.")
        _positive_integer("divisor", self.divisor)

    def hidden(self, channels: int) -> int:
        """Return the number of hidden units of a gate over ``channels`` channels."""
        if self.divisor == 1:
            return max(1, int(channels // self.ratio))
        # timm's rule (make_divisible with round_limit=0): to the nearest multiple, halves up.
        nearest = int(channels / self.ratio + self.divisor / 2) // self.divisor * self.divisor
        return max(self.divisor, nearest)

    def build(self, channels: int) -> nn.Module:
        """Return the gate for a branch of ``channels`` channels; no module at all for "none".

        What is not built has no parameter that DDP could wait for.
        """
        kind = GATES[self.gate]
        if kind is None:
            return nn.Identity()
        return kind(channels, self.ratio, bias=self.bias, divisor=self.divisor)


class SqueezeExcitation(nn.Module):
    r"""Rescales each channel by a gate computed from the whole image's channel means.

    :math:`y = x \cdot \sigma(W_2\, \mathrm{ReLU}(W_1\, z))` with
    :math:`z_c = \frac{1}{HW} \sum_{i,j} x_{cij}` (equations 2 to 4 of the paper). The two layers
    are 1x1 convolutions called ``fc1`` and ``fc2``, as in timm; the sigmoid is the submodule
    ``gate``, so that a forward hook on it sees the excitations.

    Args:
        channels: C.
        ratio: reduction ratio r, at least 1.
        bias: whether the two layers have biases.
        divisor: round the hidden width to a multiple; 1 keeps ``max(1, C // ratio)``.

    Shape:
        (N, C, H, W) to (N, C, H, W).

    Raises:
        ValueError: for channels, ratio or divisor below 1.

    Example:
        >>> import torch
        >>> SqueezeExcitation(64, ratio=16)(torch.ones(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])

    Reference:
        Hu, Shen, Albanie, Sun, Wu. Squeeze-and-Excitation Networks. arXiv:1709.01507.
    """

    def __init__(
        self, channels: int, ratio: float = 16, *, bias: bool = True, divisor: int = 1
    ) -> None:
        super().__init__()
        _positive_integer("channels", channels)
        hidden = Excitation(ratio, bias=bias, divisor=divisor).hidden(channels)
        self.ratio = ratio
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        # mean() and not AdaptiveAvgPool2d, which gave NaN under AMP with channels-last
        # (pytorch/pytorch#43992).
        z = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(z))))


GATES: dict[str, type[SqueezeExcitation] | None] = {"channel": SqueezeExcitation, "none": None}


def hidden_widths(model: nn.Module) -> dict[str, int]:
    """Return the effective number of hidden units of each gate, by module path.

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
