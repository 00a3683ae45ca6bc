"""Lightning callbacks: thin shells over :mod:`se_lightning.excitation` and the trainer."""

from se_lightning.callbacks.class_selectivity import ClassSelectivity
from se_lightning.callbacks.excitation_curves import ExcitationCurves
from se_lightning.callbacks.excitation_histogram import ExcitationHistogram
from se_lightning.callbacks.gate_doctor import GateDoctor

__all__ = ["ClassSelectivity", "ExcitationCurves", "ExcitationHistogram", "GateDoctor"]
