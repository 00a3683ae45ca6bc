"""SE-VGG-16 with batch normalization."""

from collections import OrderedDict
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import GateOptions, StagedGateOptions

__all__ = ["SEVGG16BN", "se_vgg16_bn"]

# Width and number of the convolutions of each stage; each stage ends with a pool.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class SEVGG16BN(ImageNetwork):
    """VGG-16 with batch normalization and a gate after each of its 13 ReLUs.

    Parameter names are torchvision's; the gate is ``se`` next to its ReLU.

    Args:
        dropout: Dropout rate of the two hidden dense layers.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement, and ``stages`` (1 to 5, each
            ends with a pool); ``se_bias`` defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, K), H and W at least 32.

    Raises:
        ValueError: If a number is out of range, or a gate option is refused.

    Reference:
        Simonyan and Zisserman, arXiv:1409.1556; Hu et al., arXiv:1709.01507, Table 2.
    """

    family = "SE-VGG-16"
    gate_defaults: ClassVar[GateOptions] = {"se_bias": False}
    pools = ("avg", "max", "")
    classifier_name = "classifier.6"
    head_hidden_size = 4096

    def __init__(
        self,
        *,
        dropout: float = 0.5,
        num_classes: int = 1000,
        in_channels: int = 3,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        excitations = self._excitations(gates, len(_STAGES))
        super().__init__(num_classes, in_channels, min_size=32, dropout=dropout)
        layers: list[nn.Module] = []
        channels, first = in_channels, 0
        for stage, ((width, count), excitation) in enumerate(
            zip(_STAGES, excitations, strict=True)
        ):
            for _ in range(count):
                gated = OrderedDict(act=nn.ReLU(inplace=True), se=excitation.build(width))
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.Sequential(gated),
                ]
                channels = width
            # The map of a stage is the input of its pool.
            step = [f"features.{index}" for index in range(first, len(layers))]
            self._step(*step, channels=width, reduction=2**stage)
            first = len(layers)
            layers.append(nn.MaxPool2d(2, stride=2))
        self._step(f"features.{first}", channels=channels, reduction=32)
        self.features = nn.Sequential(*layers)
        hidden = self._hidden_layers()
        self.global_pool, last = self._head(num_classes, gates)
        self.classifier = hidden.append(last)
        self._finish()
        self.classifier.apply(_initialize)
        self._drop_unused()

    def _pool(self, kind: str) -> nn.Module:
        pools = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}
        return pools[kind](7) if kind else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; without a pool, remove the hidden layers as well.

        See :meth:`ImageNetwork.reset_classifier`.
        """
        removed = not self.pool_type
        super().reset_classifier(num_classes, global_pool)
        if removed and self.pool_type:
            like, last = next(self.parameters()), self.classifier[-1]
            hidden = self._hidden_layers().apply(_initialize).to(like.device, like.dtype)
            self.classifier = hidden.append(last).train(self.training)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Without a pool, replace the layers of the classifier by identities, which keep names."""
        if not self.pool_type:
            self.classifier = nn.Sequential(*(nn.Identity() for _ in self.classifier))

    def _hidden_layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(512 * 7 * 7, self.head_hidden_size),
            nn.ReLU(inplace=True),
            nn.Dropout(self.dropout),
            nn.Linear(self.head_hidden_size, self.head_hidden_size),
            nn.ReLU(inplace=True),
            nn.Dropout(self.dropout),
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or the output of the last hidden layer (N, 4096)."""
        x = self.global_pool(x)
        if not self.pool_type:
            return x
        x = x.flatten(1)
        return self.classifier[:-1](x) if pre_logits else self.classifier(x)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def se_vgg16_bn(num_classes: int = 1000, **options: Any) -> SEVGG16BN:
    """SE-VGG-16-BN: 138,592,296 parameters. Options as in :class:`SEVGG16BN`."""
    return SEVGG16BN(num_classes=num_classes, **options)
