"""What all networks share: images in, a feature map, logits out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from se_lightning.models.gates import fraction, positive_integer, start_at_one, warn_of_single_units

__all__ = ["ImageNetwork", "check_images"]


@torch.fx.wrap
def check_images(x: Tensor, in_channels: int, min_size: int, image_size: int | None = None) -> None:
    """Refuse what the network cannot take; a leaf to torch.fx, whose tracing knows no sizes."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"The network takes images (N, {in_channels}, H, W), got {tuple(x.shape)}; "
            f"`in_channels` (={in_channels}) must be theirs."
        )
    if min_size > 1 and min(x.shape[2:]) < min_size:
        raise ValueError(
            f"The network takes images of at least {min_size}x{min_size} pixels, got "
            f"{x.shape[2]}x{x.shape[3]}; enlarge them, or take a network for small images "
            "(se_resnet20, say)."
        )
    if image_size is not None and (x.shape[2], x.shape[3]) != (image_size, image_size):
        raise ValueError(
            f"The network was built for images of {image_size}x{image_size} pixels, got "
            f"{x.shape[2]}x{x.shape[3]}; `image_size` (={image_size}) must be theirs."
        )


class ImageNetwork(nn.Module, ABC):
    """Images to logits in two steps, with timm's names for them.

    A family defines ``_features``, sets ``num_features`` (channels of the last feature map),
    ``reduction`` (its stride) and the classifier, and ends its constructor with ``_finish``.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        min_size: side of the smallest image that leaves a feature map, pixels.
        dropout: fraction of the pooled features that is dropped in training.
        image_size: side of the images, pixels, where it must be this one; None for any.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    num_features: int
    reduction: int
    classifier_name = "fc"

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        min_size: int = 1,
        dropout: float = 0.0,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        positive_integer("num_classes", num_classes)
        positive_integer("in_channels", in_channels)
        fraction("dropout", dropout)
        self.in_channels = in_channels
        self.min_size = min_size
        self.image_size = image_size
        self.drop = nn.Dropout(dropout)

    @property
    def head_hidden_size(self) -> int:
        """Number of features that the classifier reads."""
        return self.num_features

    @abstractmethod
    def _features(self, x: Tensor) -> Tensor:
        """Return the last feature map."""

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        """Run submodules one after the other."""
        for name in names:
            x = getattr(self, name)(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (N, num_features, about H / reduction, W / reduction)."""
        check_images(x, self.in_channels, self.min_size, self.image_size)
        return self._features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn a feature map into logits (N, K), or pooled features (N, head_hidden_size)."""
        x = self.drop(x.mean((2, 3)))
        return x if pre_logits else self.get_submodule(self.classifier_name)(x)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the pooled features."""
        owner, _, name = self.classifier_name.rpartition(".")
        fresh = self._fresh_classifier(self.head_hidden_size, num_classes)
        setattr(self.get_submodule(owner), name, fresh)

    def _fresh_classifier(self, features: int, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        positive_integer("num_classes", num_classes)
        weight = next(self.parameters())
        return nn.Linear(features, num_classes, device=weight.device, dtype=weight.dtype)

    def _finish(self) -> None:
        """Initialise the convolutions (He et al., arXiv:1502.01852), and tell of starved gates."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # The fan-out of a depthwise convolution is one channel's, which is its fan-in;
                # that of a spatial gate's single output would saturate the gate.
                depthwise = module.groups == module.in_channels > 1
                small = depthwise or module.out_channels == 1
                nn.init.kaiming_normal_(module.weight, mode="fan_in" if small else "fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        start_at_one(self)
        warn_of_single_units(self)
