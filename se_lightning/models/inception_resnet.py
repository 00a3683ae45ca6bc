"""SE-Inception-ResNet-v2."""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from se_lightning.models.layers.inception_block import ConvNorm, Size
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, ResidualGateOptions
from se_lightning.models.layers.residual import ResidualUnit, tail

__all__ = ["SEInceptionResNetV2", "se_inception_resnet_v2"]

# A branch is a list of convolutions (channels, kernel[, stride, padding]), optionally after a pool.
Branch = Sequence[tuple[int, Size] | tuple[int, Size, int, int] | nn.Module]


class Branches(nn.Module):
    """Parallel branches over the same input, concatenated; named as in timm.

    Shape:
        (N, C, H, W) to (N, out_channels, H', W').
    """

    def __init__(self, in_channels: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.out_channels = 0
        for number, branch in enumerate(branches):
            steps, channels = [], in_channels
            for step in branch:
                if not isinstance(step, nn.Module):
                    width, kernel, *stride_padding = step
                    step = ConvNorm(channels, width, kernel, *stride_padding)
                    channels = width
                steps.append(step)
            self.add_module(
                f"branch{number}", steps[0] if len(steps) == 1 else nn.Sequential(*steps)
            )
            self.out_channels += channels

    def concatenated(self, x: Tensor) -> Tensor:
        """Run the branches and concatenate their outputs."""
        names = [name for name in self._modules if name.startswith("branch")]
        return torch.cat([getattr(self, name)(x) for name in names], 1)


class Mixed(Branches):
    """Branches without a shortcut, where the size or width changes, and a gate on their output."""

    def __init__(
        self, in_channels: int, branches: Sequence[Branch], excitation: Excitation
    ) -> None:
        super().__init__(in_channels, branches)
        self.se = excitation.build(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.concatenated(x))


class InceptionUnit(Branches, ResidualUnit):
    """Residual unit: branches, a linear 1x1 back to the width, scaled down; gate, shortcut, ReLU.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Branch],
        scale: float,
        excitation: Excitation,
        act: bool = True,
    ) -> None:
        super().__init__(channels, branches)
        self.scale = scale
        self.conv2d = nn.Conv2d(self.out_channels, channels, 1)
        self.se = self._gate(excitation, channels, channels, channels)
        self.act: nn.Module = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2d(self.concatenated(self.at("pre")(x))) * self.scale
        shortcut = self.at("identity")(x)
        out = tail(out, se=self.at("standard"), shortcut=shortcut, act=self.act)
        return self.at("post")(out)


def _mixed_5b() -> list[Branch]:
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], [pool, (64, 1)]]


def _mixed_6a() -> list[Branch]:
    return [
        [(384, 3, 2, 0)],
        [(256, 1), (256, 3), (384, 3, 2, 0)],
        [nn.MaxPool2d(3, stride=2)],
    ]


def _mixed_7a() -> list[Branch]:
    return [
        [(256, 1), (384, 3, 2, 0)],
        [(256, 1), (288, 3, 2, 0)],
        [(256, 1), (288, 3), (320, 3, 2, 0)],
        [nn.MaxPool2d(3, stride=2)],
    ]


_BLOCK_35: list[Branch] = [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]]
_BLOCK_17: list[Branch] = [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]]
_BLOCK_8: list[Branch] = [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]]


class SEInceptionResNetV2(ImageNetwork):
    """Inception-ResNet-v2 with a gate on the residual branch of each of its 40 units.

    Parameter names are timm's. ``placement="post"`` follows the Keras seed's intent: a gate after
    each sum, and also after ``mixed_5b``, ``mixed_6a``, ``mixed_7a`` and the last unit, 44 in
    all. (The published seed fails to build: it passes ``scale`` to a Lambda that takes
    ``scale_``.)

    Args:
        dropout: Dropout rate before the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation`; ``se_bias`` defaults to False, and ``placement``
            cannot be "inner", since the branches share no 3x3. ``stages``: 1 is 35x35, 2 is
            17x17, 3 is 8x8.

    Shape:
        (N, in_channels, H, W) to (N, K), H and W at least 75.

    Raises:
        ValueError: If a number is out of range, or a gate option is refused.

    Reference:
        Szegedy et al., arXiv:1602.07261; Hu et al., arXiv:1709.01507;
        titu1994/keras-squeeze-excite-network, se_inception_resnet_v2.py.
    """

    family = "SE-Inception-ResNet-v2"
    placements = ("standard", "pre", "post", "identity")
    native_size, native_map = 299, 8
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}
    classifier_name = "classif"

    def __init__(
        self,
        *,
        dropout: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[ResidualGateOptions],
    ) -> None:
        stages = self._excitations(gates, 3)
        super().__init__(num_classes, in_channels, min_size=75, dropout=dropout)
        between = [e if e.placement == "post" else Excitation(gate="none") for e in stages]
        self.conv2d_1a = ConvNorm(in_channels, 32, 3, 2, 0)
        self.conv2d_2a = ConvNorm(32, 32, 3, 1, 0)
        self.conv2d_2b = ConvNorm(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = ConvNorm(64, 80, 1)
        self.conv2d_4a = ConvNorm(80, 192, 3, 1, 0)
        self.maxpool_5a = nn.MaxPool2d(3, stride=2)
        self.mixed_5b = Mixed(192, _mixed_5b(), between[0])
        self.repeat = _repeat(10, 320, _BLOCK_35, 0.17, stages[0])
        self.mixed_6a = Mixed(320, _mixed_6a(), between[1])
        self.repeat_1 = _repeat(20, 1088, _BLOCK_17, 0.10, stages[1])
        self.mixed_7a = Mixed(1088, _mixed_7a(), between[2])
        self.repeat_2 = _repeat(9, 2080, _BLOCK_8, 0.20, stages[2])
        self.block8 = InceptionUnit(2080, _BLOCK_8, 1.0, stages[2], act=False)
        self.se = between[2].build(2080)
        self.conv2d_7b = ConvNorm(2080, 1536, 1)
        self._step("conv2d_1a", "conv2d_2a", "conv2d_2b", channels=64, reduction=2)
        self._step("maxpool_3a", "conv2d_3b", "conv2d_4a", channels=192, reduction=4)
        self._step("maxpool_5a", "mixed_5b", "repeat", channels=320, reduction=8)
        self._step("mixed_6a", "repeat_1", channels=1088, reduction=16)
        last = "mixed_7a", "repeat_2", "block8", "se", "conv2d_7b"
        self._step(*last, channels=1536, reduction=32)
        self.global_pool, self.classif = self._head(num_classes, gates)
        self._finish()


def _repeat(
    count: int, channels: int, branches: list[Branch], scale: float, excitation: Excitation
) -> nn.Sequential:
    return nn.Sequential(
        *(InceptionUnit(channels, branches, scale, excitation) for _ in range(count))
    )


def se_inception_resnet_v2(num_classes: int = 1000, **options: Any) -> SEInceptionResNetV2:
    """SE-Inception-ResNet-v2: 64,338,824 parameters. Options: :class:`SEInceptionResNetV2`."""
    return SEInceptionResNetV2(num_classes=num_classes, **options)
