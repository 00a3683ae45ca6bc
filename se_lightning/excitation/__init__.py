"""Analysis of squeeze-and-excitation gates: recording, statistics and plots."""

from se_lightning.excitation.class_choice import choose_classes
from se_lightning.excitation.cost import excitation_cost
from se_lightning.excitation.curves import curve_arrays
from se_lightning.excitation.doctor import GateReport, diagnose
from se_lightning.excitation.folding.fold import FoldReport, fold_gates
from se_lightning.excitation.plots.curves import draw_curves, draw_spread
from se_lightning.excitation.plots.histogram import draw_epochs, draw_histogram
from se_lightning.excitation.plots.selectivity import draw_selectivity, draw_selectivity_epochs
from se_lightning.excitation.recording import excitations
from se_lightning.excitation.statistics import ExcitationStatistics
from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.excitation.taps import Taps
from se_lightning.excitation.what_if import replaced, what_if
from se_lightning.models import find_gates

__all__ = [
    "ExcitationStatistics",
    "ExcitationSummary",
    "FoldReport",
    "GateReport",
    "Taps",
    "choose_classes",
    "curve_arrays",
    "diagnose",
    "draw_curves",
    "draw_epochs",
    "draw_histogram",
    "draw_selectivity",
    "draw_selectivity_epochs",
    "draw_spread",
    "excitation_cost",
    "excitations",
    "find_gates",
    "fold_gates",
    "replaced",
    "what_if",
]
