"""The last steps of a unit in few passes over its feature map."""

from se_lightning.models.layers.fused.checks import fuses, is_plain
from se_lightning.models.layers.fused.tail import rescaled

__all__ = ["fuses", "is_plain", "rescaled"]
