"""Pooling before the classifier, and the classes that its logits stand for."""

from typing import overload

from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.arguments import one_of
from se_lightning.models.layers.gates import SQUEEZES

__all__ = ["POOLS", "GlobalPool", "class_logits", "count_classes", "predicted"]

# As in timm, the empty name passes the map through.
POOLS = ("avg", "max", "avgmax", "")


class GlobalPool(nn.Module):
    """Pooling over space, then dropout.

    Dropout is in here so that, as in torchvision's ResNets, exactly two children follow the last
    feature map.

    Args:
        pool_type: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of the two), or ``""``, which
            returns the map as it is.
        dropout: Dropout rate.

    Shape:
        (N, C, H, W) to (N, C, 1, 1), or to (N, C, H, W) with ``""``.

    Raises:
        ValueError: If the type is unknown.
    """

    def __init__(self, pool_type: str = "avg", dropout: float = 0.0) -> None:
        super().__init__()
        one_of("pool_type", pool_type, POOLS)
        self.pool_type = pool_type
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.drop(SQUEEZES[self.pool_type](x)) if self.pool_type else x

    def extra_repr(self) -> str:  # noqa: D102
        return self.pool_type or "none"


@overload
def count_classes(outputs: int) -> int: ...
@overload
def count_classes(outputs: int | None) -> int | None: ...
def count_classes(outputs: int | None) -> int | None:
    """Return the number of classes that so many logits tell apart; None if it is not known."""
    return 2 if outputs == 1 else outputs


def class_logits(logits: Tensor) -> Tensor:
    """Return one logit per class; a single logit z, of class 1, becomes (0, z).

    The softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)), and its cross-entropy the binary one.

    Shape:
        (N, K) to (N, K), or (N, 1) to (N, 2).
    """
    return F.pad(logits, (1, 0)) if logits.shape[1:] == (1,) else logits


def predicted(logits: Tensor) -> Tensor:
    """Return the predicted classes, (N,) int64, of logits (N, K)."""
    return class_logits(logits).argmax(1)
