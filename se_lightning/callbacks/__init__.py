"""Lightning callbacks: thin shells over :mod:`se_lightning.excitation` and the trainer."""

from se_lightning.callbacks.class_selectivity import ClassSelectivity
from se_lightning.callbacks.ema import EMA
from se_lightning.callbacks.exact_state import ExactState
from se_lightning.callbacks.excitation_curves import ExcitationCurves
from se_lightning.callbacks.excitation_histogram import ExcitationHistogram
from se_lightning.callbacks.gate_doctor import GateDoctor
from se_lightning.callbacks.last_checkpoint import LastCheckpoint
from se_lightning.callbacks.nonfinite import NonFinite, NonFiniteError
from se_lightning.callbacks.top_k import TopK

__all__ = [
    "EMA",
    "ClassSelectivity",
    "ExactState",
    "ExcitationCurves",
    "ExcitationHistogram",
    "GateDoctor",
    "LastCheckpoint",
    "NonFinite",
    "NonFiniteError",
    "TopK",
]
