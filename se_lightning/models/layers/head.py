"""Pooling between the last feature map and the classifier."""

from torch import Tensor, nn

from se_lightning.arguments import one_of
from se_lightning.models.layers.gates import SQUEEZES

__all__ = ["POOLS", "GlobalPool"]

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
