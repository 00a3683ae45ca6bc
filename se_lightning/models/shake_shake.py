"""SE-Shake-Shake, for CIFAR."""

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.arguments import one_of, positive_integer
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, ResidualGateOptions
from se_lightning.models.layers.residual import ResidualUnit, conv1x1, conv3x3, stack, tail

__all__ = ["SEShakeShake", "se_shake_shake26_2x96d", "se_shake_shake29_2x4x64d"]


def shake(first: Tensor, second: Tensor, backward: str) -> Tensor:
    """Mix two branches with a random share per image, and their gradients with another.

    Args:
        first: Output of the first branch, (N, C, H, W).
        second: Output of the second branch, (N, C, H, W).
        backward: Shares of the gradients: ``"shake"`` draws another, ``"even"`` takes halves.
    """
    shares = first.new_empty([2, first.shape[0], 1, 1, 1]).uniform_()
    back = shares[1] if backward == "shake" else torch.full_like(shares[1], 0.5)
    # The value of `forward` with the gradient of `mixed`.
    forward = torch.lerp(second, first, shares[0])
    mixed = back * first + (1 - back) * second
    return mixed + (forward - mixed).detach()


class Shake(nn.Module):
    """Mixes two branches: at random in training, see :func:`shake`, and evenly in evaluation.

    Args:
        backward: As in :func:`shake`.

    Shape:
        Two of (N, C, H, W) to the same.
    """

    trace_through = False  # its forward depends on the mode

    def __init__(self, backward: str) -> None:
        super().__init__()
        self.backward = backward

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if self.training:
            return shake(first, second, self.backward)
        return 0.5 * (first + second)


class SkipConnection(nn.Module):
    """Shortcut: ReLU, two 1x1 on every stride-th pixel, the second shifted by a pixel, norm.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, out_channels // 2, stride)
        self.conv2 = conv1x1(in_channels, out_channels - out_channels // 2, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], 1))


def _branch(in_channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        conv3x3(in_channels, width, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, width),
        nn.BatchNorm2d(width),
    )


def _grouped_branch(in_channels: int, width: int, stride: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        conv1x1(in_channels, width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, width, stride, groups),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv1x1(width, width),
        nn.BatchNorm2d(width),
    )


class ShakeUnit(ResidualUnit):
    """Residual unit of two branches, mixed at random in training and evenly in evaluation.

    Shape:
        (N, in_channels, H, W) to (N, width, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        excitation: Excitation,
        cardinality: int | None,
        backward: str,
    ) -> None:
        super().__init__()
        self.backward = backward
        branches = [
            _branch(in_channels, width, stride)
            if cardinality is None
            else _grouped_branch(in_channels, width, stride, cardinality)
            for _ in range(2)
        ]
        self.branch1, self.branch2 = branches
        self.mix = Shake(backward)
        self.se = self._gate(excitation, in_channels, width, width)
        same = stride == 1 and in_channels == width
        self.downsample = None if same else SkipConnection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.at("identity")(x if self.downsample is None else self.downsample(x))
        entry = self.at("pre")(x)
        mixed = self.mix(self.branch1(entry), self.branch2(entry))
        return self.at("post")(tail(mixed, se=self.at("standard"), shortcut=shortcut))

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [f"backward={self.backward}", super().extra_repr()]))


class SEShakeShake(ImageNetwork):
    """Shake-Shake with one gate in each unit, on the mixture of its two branches.

    Args:
        depth: 6n + 2 for three stages of n units, with cardinality 9n + 2.
        width: Width of a branch in the first stage; with cardinality, of each group there.
        cardinality: None for branches of two 3x3; number of groups for 1x1, grouped 3x3, 1x1.
        backward: Share of the first branch in the gradient: ``"shake"`` draws another one
            (Shake-Shake-Image), ``"even"`` is one half (Shake-Even-Image).
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`, and ``stages``; ``se_bias`` defaults to False,
            and ``placement`` cannot be "inner", since there are two branches.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If `depth` is not 6n + 2 (9n + 2), a number is not positive, a name is unknown,
            or a gate option is refused.

    Reference:
        Gastaldi, arXiv:1705.07485; Hu et al., arXiv:1709.01507, Tables 4 and 5.
    """

    family = "SE-Shake-Shake"
    native_size = 32
    placements = ("standard", "pre", "post", "identity")
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}

    def __init__(
        self,
        depth: int = 26,
        width: int = 96,
        *,
        cardinality: int | None = None,
        backward: str = "shake",
        num_classes: int = 10,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        positive_integer("depth", depth)
        positive_integer("width", width)
        if cardinality is not None:
            positive_integer("cardinality", cardinality)
        step = 6 if cardinality is None else 9
        if depth < step + 2 or (depth - 2) % step:
            raise ValueError(f"`depth` (={depth}) must be {step}n + 2 for three equal stages.")
        one_of("backward", backward, ("shake", "even"))
        excitations = self._excitations(gates, 3)
        super().__init__(num_classes, in_channels)
        channels = 16 if cardinality is None else 64
        self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self._step("conv1", "bn1", channels=channels, reduction=1)
        for stage, excitation in enumerate(excitations):
            out_channels = width * (cardinality or 1) * 2**stage
            layer = stack(
                ShakeUnit,
                (depth - 2) // step,
                channels,
                out_channels,
                2 if stage else 1,
                excitation,
                cardinality,
                backward,
            )
            self.add_module(f"layer{stage + 1}", layer)
            channels = out_channels
            ends = ("act",) if stage == 2 else ()
            self._step(f"layer{stage + 1}", *ends, channels=channels, reduction=2**stage)
        self.act = nn.ReLU()  # not in place: gradient checkpointing runs it alone
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()


def se_shake_shake26_2x96d(num_classes: int = 10, **options: Any) -> SEShakeShake:
    """SE-Shake-Shake 26 2x96d: 26,289,690 parameters. Options as in :class:`SEShakeShake`."""
    return SEShakeShake(num_classes=num_classes, **options)


def se_shake_shake29_2x4x64d(num_classes: int = 100, **options: Any) -> SEShakeShake:
    """SE-Shake-Even 29 2x4x64d, for CIFAR-100. Options as in :class:`SEShakeShake`."""
    options = {"width": 64, "cardinality": 4, "backward": "even", **options}
    return SEShakeShake(29, num_classes=num_classes, **options)
