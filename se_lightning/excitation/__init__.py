"""What the gates do: finding them, and statistics of their values. No Hydra, no W&B."""

from se_lightning.excitation.histogram import GateHistogram, draw_histogram
from se_lightning.models import find_gates

__all__ = ["GateHistogram", "draw_histogram", "find_gates"]
