"""What the gates do: finding them, and statistics of their values. No Hydra, no W&B."""

from se_lightning.excitation.classes import choose_classes
from se_lightning.excitation.histogram import GateHistogram, draw_histogram
from se_lightning.excitation.statistics import ExcitationStatistics
from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.excitation.taps import Taps
from se_lightning.models import find_gates

__all__ = [
    "ExcitationStatistics",
    "ExcitationSummary",
    "GateHistogram",
    "Taps",
    "choose_classes",
    "draw_histogram",
    "find_gates",
]
