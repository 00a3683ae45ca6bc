"""Dense block and transition of SE-DenseNet."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.models.layers.residual import conv1x1, conv3x3

__all__ = ["DenseBlock", "DenseLayer", "transition"]


class DenseLayer(nn.Module):
    """Norm, ReLU, [1x1 to 4k, norm, ReLU,] 3x3 to k, dropout; the output follows the input.

    Shape:
        (N, C, H, W) to (N, C + growth_rate, H, W).
    """

    def __init__(
        self, in_channels: int, growth_rate: int, bottleneck: bool, dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act = nn.ReLU(inplace=True)
        if bottleneck:
            self.conv1 = conv1x1(in_channels, 4 * growth_rate)
            self.norm2: nn.Module | None = nn.BatchNorm2d(4 * growth_rate)
            self.conv2: nn.Module = conv3x3(4 * growth_rate, growth_rate)
        else:
            self.conv1 = conv3x3(in_channels, growth_rate)
            self.norm2 = None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        new = self.conv1(self.act(self.norm1(x)))
        if self.norm2 is not None:
            new = self.conv2(self.act(self.norm2(new)))
        if self.dropout_rate:
            new = F.dropout(new, self.dropout_rate, self.training)
        return torch.cat([x, new], 1)


class DenseBlock(nn.Sequential):
    """Dense layers, and a gate on their concatenated output."""

    def __init__(
        self,
        layers: int,
        in_channels: int,
        growth_rate: int,
        bottleneck: bool,
        gate: nn.Module,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        for index in range(layers):
            width = in_channels + index * growth_rate
            layer = DenseLayer(width, growth_rate, bottleneck, dropout_rate)
            self.add_module(f"denselayer{index + 1}", layer)
        self.add_module("se", gate)


def transition(in_channels: int, out_channels: int, gate: nn.Module) -> nn.Sequential:
    """Return a transition: norm, ReLU, 1x1, average over 2x2, gate."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=conv1x1(in_channels, out_channels),
            pool=nn.AvgPool2d(2, stride=2),
            se=gate,
        )
    )
