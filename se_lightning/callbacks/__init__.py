"""Lightning callbacks: thin shells over :mod:`se_lightning.excitation` and the trainer."""

from se_lightning.callbacks.excitation_histogram import ExcitationHistogram

__all__ = ["ExcitationHistogram"]
