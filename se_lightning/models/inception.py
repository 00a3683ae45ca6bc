"""SE-Inception-v3."""

from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.arguments import boolean
from se_lightning.models.layers.inception_block import Branch, ConvNorm, Mixed
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import GateOptions, StagedGateOptions

__all__ = ["SEInceptionV3", "se_inception_v3"]


def _double(width: int, out: int, *stride_padding: int) -> Branch:
    name = "branch3x3dbl_"
    return [(name + "1", width, 1), (name + "2", out, 3), (name + "3", out, 3, *stride_padding)]


def _mixed_35(pooled: int) -> list[Branch]:
    """Return the branches at 35x35: 1x1, 5x5, two 3x3, pool."""
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        _double(64, 96),
        ["avg", ("branch_pool", pooled, 1)],
    ]


def _mixed_17(c: int) -> list[Branch]:
    """Return the branches at 17x17: 1x1, a 7x7 in two steps, two 7x7 in four, pool."""
    return [
        [("branch1x1", 192, 1)],
        [
            ("branch7x7_1", c, 1),
            ("branch7x7_2", c, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        ],
        [
            ("branch7x7dbl_1", c, 1),
            ("branch7x7dbl_2", c, (7, 1)),
            ("branch7x7dbl_3", c, (1, 7)),
            ("branch7x7dbl_4", c, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["avg", ("branch_pool", 192, 1)],
    ]


_MIXED_8: list[Branch] = [
    [("branch1x1", 320, 1)],
    [
        ("branch3x3_1", 384, 1),
        (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
    ],
    [
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    ],
    ["avg", ("branch_pool", 192, 1)],
]
_TO_17: list[Branch] = [[("branch3x3", 384, 3, 2, 0)], _double(64, 96, 2, 0), ["shrink"]]
_TO_8: list[Branch] = [
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2, 0)],
    [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3, 2, 0),
    ],
    ["shrink"],
]
# torchvision's name of each mixed block, its stage and its branches.
_INCEPTION_V3: list[tuple[str, int, list[Branch]]] = [
    ("Mixed_5b", 1, _mixed_35(32)),
    ("Mixed_5c", 1, _mixed_35(64)),
    ("Mixed_5d", 1, _mixed_35(64)),
    ("Mixed_6a", 2, _TO_17),
    ("Mixed_6b", 2, _mixed_17(128)),
    ("Mixed_6c", 2, _mixed_17(160)),
    ("Mixed_6d", 2, _mixed_17(160)),
    ("Mixed_6e", 2, _mixed_17(192)),
    ("Mixed_7a", 3, _TO_8),
    ("Mixed_7b", 3, _MIXED_8),
    ("Mixed_7c", 3, _MIXED_8),
]


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier on the 17x17 map, used in training.

    Shape:
        (N, C, H, W), at least 17x17, to (N, K).
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv0 = ConvNorm(in_channels, 128, 1)
        self.conv1 = ConvNorm(128, 768, 5, padding=0)
        self.fc: nn.Module = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(self.conv0(self.pool(x))).mean((2, 3)))


class SEInceptionV3(ImageNetwork):
    """Inception-v3 with a gate after each of its 11 mixed blocks.

    Parameter names are torchvision's. Unlike in the Keras seed, the norms have a scale.

    Args:
        aux: Whether to also classify the 17x17 map in training mode; ``forward`` then returns
            (logits, auxiliary logits). Needs images of at least 299x299.
        dropout: Dropout rate before the classifier.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement; ``se_bias`` defaults to False.
            ``stages``: 1 is 35x35, 2 is 17x17, 3 is 8x8.

    Shape:
        (N, in_channels, H, W) to (N, K), H and W at least 75.

    Raises:
        ValueError: If `aux` is not a boolean, a number is out of range, or a gate option is
            refused.

    Reference:
        Szegedy et al., arXiv:1512.00567; titu1994/keras-squeeze-excite-network, se_inception_v3.py.
    """

    family = "SE-Inception-v3"
    native_size, native_map = 299, 8
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}

    def __init__(
        self,
        *,
        aux: bool = False,
        dropout: float = 0.5,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        excitations = self._excitations(gates, 3)
        boolean("aux", aux)
        smallest = 299 if aux else 75
        super().__init__(num_classes, in_channels, min_size=smallest, dropout=dropout)
        self.Conv2d_1a_3x3 = ConvNorm(in_channels, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, 1, 0)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self._step("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", channels=64, reduction=2)
        self._step("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", channels=192, reduction=4)
        channels, step = 192, ["maxpool2"]
        for name, stage, branches in _INCEPTION_V3:
            if name == "Mixed_7a":
                used = aux and num_classes > 0
                self.AuxLogits = AuxiliaryHead(channels, num_classes) if used else None
            block = Mixed(channels, branches, excitations[stage - 1])
            self.add_module(name, block)
            channels = block.out_channels
            step.append(name)
            if name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
                self._step(*step, channels=channels, reduction=4 * 2**stage)
                step = []
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, K); in training mode with ``aux``, also the auxiliary ones."""
        if self.AuxLogits is None or not self.training:
            return super().forward(x)
        last, (at_17,) = self.forward_intermediates(x, [-2])
        return self.forward_head(last), self.AuxLogits(at_17)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both classifiers; see :meth:`ImageNetwork.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        if self.AuxLogits is not None and num_classes == 0:
            self.AuxLogits = None
        elif self.AuxLogits is not None:
            self.AuxLogits.fc = self._classifier(768, num_classes)


def se_inception_v3(num_classes: int = 1000, **options: Any) -> SEInceptionV3:
    """SE-Inception-v3: 25,485,512 parameters. Options as in :class:`SEInceptionV3`."""
    return SEInceptionV3(num_classes=num_classes, **options)
