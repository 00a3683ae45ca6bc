"""Mixed block of the Inception networks: concatenated parallel branches, then a gate."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.models.layers.options import Excitation

__all__ = ["Branch", "ConvNorm", "HalvingPool", "Mixed", "Size"]

Size = int | tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution without bias, norm, ReLU; keeps the size at stride 1 unless padding is given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        stride: int = 1,
        padding: Size | None = None,
        *,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if padding is None:
            height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            padding = (height // 2, width // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=eps)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.act(self.bn(self.conv(x)))


class HalvingPool(nn.Module):
    """Max-pool over 3x3 with stride 2 that starts at the first pixel and rounds the size up.

    On even sizes it equals Caffe's pool without padding. On odd sizes Caffe's is one pixel smaller
    than the parallel strided convolutions, and could not be concatenated with them.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.max_pool2d(F.pad(x, (0, 2, 0, 2), value=-torch.inf), 3, stride=2)


# A branch is a list of steps: a convolution (name, channels, kernel[, stride, padding]), a tuple of
# convolutions that read the same map and are concatenated, or the name of a pool.
Conv = tuple[Any, ...]
Branch = Sequence[Conv | str]
POOLS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "max": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "shrink": lambda: nn.MaxPool2d(3, stride=2),
    "halve": HalvingPool,
}


class Mixed(nn.Module):
    """Parallel branches over the same input, concatenated, and a gate on their output.

    Args:
        in_channels: Number of channels C.
        branches: Steps of each branch.
        excitation: Options of the gate.
        eps: Epsilon of the norms.

    Shape:
        (N, C, H, W) to (N, out_channels, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Branch],
        excitation: Excitation,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.paths: list[list[list[str]]] = []
        self.out_channels = 0
        for branch in branches:
            channels = in_channels
            path: list[list[str]] = []
            for step in branch:
                if isinstance(step, str):
                    self.add_module(step, POOLS[step]())
                    path.append([step])
                    continue
                fork = step if isinstance(step[0], tuple) else (step,)
                for name, width, kernel, *stride_padding in fork:
                    conv = ConvNorm(channels, width, kernel, *stride_padding, eps=eps)
                    self.add_module(name, conv)
                path.append([conv[0] for conv in fork])
                channels = sum(conv[1] for conv in fork)
            self.paths.append(path)
            self.out_channels += channels
        self.se = excitation.build(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        outs = []
        for path in self.paths:
            out = x
            for names in path:
                parts = [getattr(self, name)(out) for name in names]
                out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outs.append(out)
        return self.se(torch.cat(outs, 1))
