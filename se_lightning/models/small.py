"""Small networks for MNIST."""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from se_lightning.arguments import boolean, positive_integer
from se_lightning.models.layers.gate_base import add_input
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.options import Excitation, GateOptions, StagedGateOptions
from se_lightning.models.layers.residual import tail, unchanged

__all__ = ["NestedUnit", "SENested", "SESimple", "se_nested", "se_simple", "se_simple_residual"]


class SESimple(ImageNetwork):
    """3x3 convolution to 32 channels, ReLU, gate, 1x1 convolution to 1, ReLU, dense layer.

    The Keras MNIST seed, with the final dense layer that the seed's code discards. At 28x28x1
    with 10 classes it has 320 + 1,024 + 33 + 7,850 = 9,227 parameters.

    Args:
        residual: Whether to add the gate's input to its output.
        image_size: Side of the images in pixels, which fixes the size of the dense layer.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement; ``ratio`` defaults to 2,
            ``se_bias`` to False.

    Shape:
        (N, in_channels, image_size, image_size) to (N, K).

    Raises:
        ValueError: If `residual` is not a boolean, a number is not positive, or a gate option is
            refused.
    """

    family = "se_simple"
    native_size = 28
    pools = ("pixels", "")  # the classifier reads each pixel
    gate_defaults: ClassVar[GateOptions] = {"ratio": 2, "se_bias": False}

    def __init__(
        self,
        *,
        residual: bool = False,
        image_size: int = 28,
        num_classes: int = 10,
        in_channels: int = 1,
        **gates: Unpack[GateOptions],
    ) -> None:
        (excitation,) = self._excitations(gates)
        positive_integer("image_size", image_size)
        boolean("residual", residual)
        super().__init__(num_classes, in_channels, image_size=image_size)
        self.residual = residual
        self.pixels = image_size**2
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.se = excitation.build(32)
        if residual:
            self.se.register_forward_hook(add_input)
        self.conv2 = nn.Conv2d(32, 1, 1)
        self.act2 = nn.ReLU(inplace=True)
        self._step("conv1", "act", channels=32, reduction=1)
        self._step("se", "conv2", "act2", channels=1, reduction=1)
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()

    @property
    def head_hidden_size(self) -> int:  # noqa: D102
        return self.pixels

    def _pool(self, kind: str) -> nn.Module:
        return nn.Flatten() if kind else nn.Identity()

    def extra_repr(self) -> str:  # noqa: D102
        return f"residual={self.residual}"


class NestedUnit(nn.Module):
    """Residual unit with a gate on its output, and a second projection around both.

    With ``literal``, it is the block of the PyTorch seed, which ends with a sum::

        inner = ReLU(BN(conv(ReLU(BN(conv(x))))) + BN(conv1x1(x)))
        output = inner * gate(inner) + BN(conv1x1(x))

    Otherwise a ReLU follows the sum. Convolutions have biases.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the projections.
        excitation: Options of the gate; None for a channel gate with r = 16 and biases.
        middle_channels: Channels between the two convolutions; None for ``out_channels``.
        kernel_size: Side of their kernels, odd.
        padding: Their padding, which must be ``(kernel_size - 1) / 2``, since the projections keep
            the size; None for that.
        literal: Whether to leave out the last ReLU.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).

    Raises:
        ValueError: If a number is not positive, or the padding does not match the kernel.

    Example:
        >>> import torch
        >>> unit = NestedUnit(3, 64, middle_channels=32, kernel_size=5, literal=True)
        >>> unit(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        excitation: Excitation | None = None,
        *,
        middle_channels: int | None = None,
        kernel_size: int = 3,
        padding: int | None = None,
        literal: bool = False,
    ) -> None:
        super().__init__()
        middle = out_channels if middle_channels is None else middle_channels
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "stride": stride}
        for name, value in {**numbers, "middle_channels": middle}.items():
            positive_integer(name, value)
        pad = _same_padding(kernel_size, padding)
        boolean("literal", literal)
        self.literal = literal
        self.conv1 = nn.Conv2d(in_channels, middle, kernel_size, stride=stride, padding=pad)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, out_channels, kernel_size, padding=pad)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)
        self.se = (excitation or Excitation()).build(out_channels)
        self.outer = _projection(in_channels, out_channels, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        out = self.conv2(self.act(self.bn1(self.conv1(x))))
        out = tail(out, norm=self.bn2, shortcut=self.downsample(x), act=self.act)
        last = unchanged if self.literal else self.act
        return tail(out, se=self.se, shortcut=self.outer(x), act=last)

    def extra_repr(self) -> str:  # noqa: D102
        return "literal=True" if self.literal else ""


def _same_padding(kernel_size: int, padding: int | None) -> int:
    """Return the padding that keeps the size, checked against the given one."""
    positive_integer("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(
            f"`kernel_size` (={kernel_size}) must be odd, to keep the size of the map."
        )
    if padding not in (None, kernel_size // 2):
        raise ValueError(
            f"`padding` (={padding!r}) must be {kernel_size // 2} with `kernel_size` "
            f"(={kernel_size}): the projections keep the size of the map."
        )
    return kernel_size // 2


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
    )


def _three(widths: Sequence[int] | None) -> Sequence[int | None]:
    """Return the middle width of each unit."""
    if widths is None:
        return [None] * 3
    if isinstance(widths, str) or not isinstance(widths, Sequence) or len(widths) != 3:
        raise ValueError(f"`middle_widths` (={widths!r}) must list three numbers, one per unit.")
    return widths


class SENested(ImageNetwork):
    """Three nested units, 16, 32 and 64 wide, after a 3x3 convolution.

    As in the PyTorch seed, the gate is on the output of a whole residual unit, and a second
    projection shortcut is added around it; gates and convolutions have biases. The widths are
    chosen for images of 28x28. The seed's own form, without a ReLU after the second sum, is
    ``literal=True, ratio=16``.

    Args:
        literal: Whether the units are those of the seed; see :class:`NestedUnit`.
        middle_widths: Channels between the two convolutions of each unit; None for 16, 32, 64.
        kernel_size: Side of the units' kernels, odd.
        padding: Their padding; None for ``(kernel_size - 1) / 2``, the only one that fits.
        num_classes: Number of classes K.
        in_channels: Number of image channels.
        **gates: Options of :class:`Excitation` except placement, and ``stages`` (1 to 3, one unit
            each); ``ratio`` defaults to 2, ``se_bias`` to True.

    Shape:
        (N, in_channels, H, W) to (N, K).

    Raises:
        ValueError: If a number is not positive, or a gate option is refused.
    """

    family = "se_nested"
    native_size = 28
    gate_defaults: ClassVar[GateOptions] = {"ratio": 2}

    def __init__(
        self,
        *,
        literal: bool = False,
        middle_widths: Sequence[int] | None = None,
        kernel_size: int = 3,
        padding: int | None = None,
        num_classes: int = 10,
        in_channels: int = 1,
        **gates: Unpack[StagedGateOptions],
    ) -> None:
        excitations = self._excitations(gates, 3)
        middle = _three(middle_widths)
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.act = nn.ReLU(inplace=True)
        for number, (channels, width, stride) in enumerate(((16, 16, 1), (16, 32, 2), (32, 64, 2))):
            unit = NestedUnit(
                channels,
                width,
                stride,
                excitations[number],
                middle_channels=middle[number],
                kernel_size=kernel_size,
                padding=padding,
                literal=literal,
            )
            self.add_module(f"layer{number + 1}", unit)
        self._step("conv1", "bn1", "act", channels=16, reduction=1)
        for number in (1, 2, 3):
            reduction = 2 ** (number - 1)
            self._step(f"layer{number}", channels=16 * reduction, reduction=reduction)
        self.global_pool, self.fc = self._head(num_classes, gates)
        self._finish()


def se_simple(num_classes: int = 10, **options: Any) -> SESimple:
    """The smallest SE net for MNIST: 9,227 parameters. Options as in :class:`SESimple`."""
    return SESimple(num_classes=num_classes, **options)


def se_simple_residual(num_classes: int = 10, **options: Any) -> SESimple:
    """The smallest SE net, with a shortcut around its gate. Options as in :class:`SESimple`."""
    return SESimple(num_classes=num_classes, **{"residual": True, **options})


def se_nested(num_classes: int = 10, **options: Any) -> SENested:
    """SE net for MNIST with gates on whole residual units. Options as in :class:`SENested`."""
    return SENested(num_classes=num_classes, **options)
