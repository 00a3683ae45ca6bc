"""Lightning callbacks, thin layers over :mod:`se_lightning.excitation` and the trainer."""

from se_lightning.callbacks.checkpointing.best import BestCheckpoint
from se_lightning.callbacks.checkpointing.exact_state import ExactState
from se_lightning.callbacks.checkpointing.last_checkpoint import LastCheckpoint
from se_lightning.callbacks.checkpointing.top_k import TopK
from se_lightning.callbacks.ema import EMA
from se_lightning.callbacks.excitation.curves import ExcitationCurves
from se_lightning.callbacks.excitation.gate_doctor import GateDoctor
from se_lightning.callbacks.excitation.histogram import ExcitationHistogram
from se_lightning.callbacks.excitation.selectivity import ClassSelectivity
from se_lightning.callbacks.nonfinite.callback import NonFinite, NonFiniteError

__all__ = [
    "EMA",
    "BestCheckpoint",
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
