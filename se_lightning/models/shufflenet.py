"""SE-ShuffleNet (v1)."""

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, StagedGateOptions
from se_lightning.models.layers.residual import conv3x3, max_pool, tail

__all__ = ["SEShuffleNet", "se_shufflenet"]

# Output channels of the first stage by number of groups (the paper's Table 1); stages 2 and 3
# double them.
_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_UNITS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Residual unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, norm, gate.

    With stride 2 the shortcut is an average pool, and is concatenated instead of added.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        groups: int,
        first_groups: int,
        excitation: Excitation,
    ) -> None:
        super().__init__()
        self.groups = groups
        # The bottleneck has a quarter of the unit's width. With stride 2 the shortcut is
        # concatenated, and the branch has the remaining channels.
        inner = out_channels // 4
        branch = out_channels - in_channels if stride == 2 else out_channels
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.se = excitation.build(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(self.act(self.bn1(self.conv1(x))), self.groups)
        out = self.conv3(self.bn2(self.conv2(out)))
        if self.pool is None:
            return tail(out, norm=self.bn3, se=self.se, shortcut=x, act=self.act)
        out = tail(out, norm=self.bn3, se=self.se)
        return self.act(torch.cat([self.pool(x), out], 1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class SEShuffleNet(ImageNetwork):
    """ShuffleNet 1x with a gate at the end of each unit's branch.

    The paper does not state the placement. With this one, the network of three groups has 2,476,144
    parameters, and 1,865,728 without gates; the paper's Table 3 truncates them to 2.4M and 1.8M.

    Args:
        groups: Groups of the 1x1 convolutions: 1, 2, 3, 4 or 8, which also sets the widths.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement, and ``stages`` (1 to 3);
            ``se_bias`` defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If `groups` is not one of those, a number is not positive, or a gate option is
            refused.

    Reference:
        Zhang et al., arXiv:1707.01083; Hu et al., arXiv:1709.01507, Table 3.
    """

    family = "SE-ShuffleNet"
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}

    def __init__(
        self,
        *,
        groups: int = 3,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        if groups not in _WIDTHS:
            raise ValueError(
                f"`groups` (={groups!r}) must be one of {', '.join(map(str, _WIDTHS))}."
            )
        excitations = self._excitations(gates, len(_UNITS))
        super().__init__(num_classes, in_channels)
        self.conv1 = conv3x3(in_channels, 24, 2)
        self.bn1 = nn.BatchNorm2d(24)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = max_pool("imagenet")
        channels = 24
        self._step("conv1", "bn1", "act", channels=channels, reduction=2)
        for stage, (count, excitation) in enumerate(zip(_UNITS, excitations, strict=True)):
            width = _WIDTHS[groups] * 2**stage
            units = []
            for index in range(count):
                # The first 1x1 reads 24 channels, too few to group.
                first = 1 if stage == 0 and index == 0 else groups
                stride = 2 if index == 0 else 1
                units.append(ShuffleUnit(channels, width, stride, groups, first, excitation))
                channels = width
            name = f"stage{stage + 1}"
            self.add_module(name, nn.Sequential(*units))
            entry = () if stage else ("maxpool",)
            self._step(*entry, name, channels=channels, reduction=8 * 2**stage)
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()


def se_shufflenet(num_classes: int = 1000, **options: Any) -> SEShuffleNet:
    """SE-ShuffleNet 1x (g = 3). Options as in :class:`SEShuffleNet`."""
    return SEShuffleNet(num_classes=num_classes, **options)
