"""SE-BN-Inception."""

from typing import Any, Unpack

from torch import nn

from se_lightning.models.layers.inception_block import Branch, ConvNorm, Mixed
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import StagedGateOptions

__all__ = ["SEBNInception", "se_bn_inception"]


def _branches(
    one: int, three: tuple[int, int], double: tuple[int, int], pool: str, pooled: int
) -> list[Branch]:
    """Return the branches 1x1, 3x3, two 3x3, pool; without a 1x1 the module halves the size."""
    halves = () if one else (2, 1)
    branches: list[Branch] = [[("conv1x1", one, 1)]] if one else []
    branches.append([("conv3x3_reduce", three[0], 1), ("conv3x3", three[1], 3, *halves)])
    branches.append(
        [
            ("double3x3_reduce", double[0], 1),
            ("double3x3_1", double[1], 3),
            ("double3x3_2", double[1], 3, *halves),
        ]
    )
    branches.append([pool, ("pool_proj", pooled, 1)] if pooled else [pool])
    return branches


# Module, stage, branches: 1x1, 3x3 (reduced, out), two 3x3 (reduced, out), pool, its projection.
_BN_INCEPTION: list[tuple[str, int, list[Branch]]] = [
    ("inception_3a", 1, _branches(64, (64, 64), (64, 96), "avg", 32)),
    ("inception_3b", 1, _branches(64, (64, 96), (64, 96), "avg", 64)),
    ("inception_3c", 1, _branches(0, (128, 160), (64, 96), "halve", 0)),
    ("inception_4a", 2, _branches(224, (64, 96), (96, 128), "avg", 128)),
    ("inception_4b", 2, _branches(192, (96, 128), (96, 128), "avg", 128)),
    ("inception_4c", 2, _branches(160, (128, 160), (128, 160), "avg", 128)),
    ("inception_4d", 2, _branches(96, (128, 192), (160, 192), "avg", 128)),
    ("inception_4e", 2, _branches(0, (128, 192), (192, 256), "halve", 0)),
    ("inception_5a", 3, _branches(352, (192, 320), (160, 224), "avg", 128)),
    ("inception_5b", 3, _branches(352, (192, 320), (192, 224), "max", 128)),
]


class SEBNInception(ImageNetwork):
    """BN-Inception with a gate after each of its 10 modules, as in the paper's Caffe release.

    As in that release, convolutions have no biases and the pools between stages round up.

    Args:
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement; ``se_bias`` defaults to True.
            ``stages``: 1 is 3a to 3c, 2 is 4a to 4e, 3 is 5a and 5b.

    Shape:
        (N, in_channels, H, W) to (N, K), H and W at least 7.

    Raises:
        ValueError: If a number is not positive, or a gate option is refused.

    Reference:
        Ioffe and Szegedy, arXiv:1502.03167; https://github.com/hujie-frank/SENet.
    """

    family = "SE-BN-Inception"

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        excitations = self._excitations(gates, 3)
        super().__init__(num_classes, in_channels, min_size=7)
        eps = 1e-5
        self.conv1 = ConvNorm(in_channels, 64, 7, 2, 3, eps=eps)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2_reduce = ConvNorm(64, 64, 1, eps=eps)
        self.conv2 = ConvNorm(64, 192, 3, eps=eps)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self._step("conv1", channels=64, reduction=2)
        self._step("pool1", "conv2_reduce", "conv2", channels=192, reduction=4)
        channels, step = 192, ["pool2"]
        for name, stage, branches in _BN_INCEPTION:
            if ["halve"] in branches:  # the map before it is the last of its size
                self._step(*step, channels=channels, reduction=4 * 2**stage)
                step = []
            step.append(name)
            module = Mixed(channels, branches, excitations[stage - 1], eps)
            self.add_module(name, module)
            channels = module.out_channels
        self._step(*step, channels=channels, reduction=32)
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()


def se_bn_inception(num_classes: int = 1000, **options: Any) -> SEBNInception:
    """SE-BN-Inception: 11,931,622 parameters. Options as in :class:`SEBNInception`."""
    return SEBNInception(num_classes=num_classes, **options)
