"""The gates' health: a table at the end, and alarms while there is something to be done."""

import logging
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from se_lightning.arguments import positive_integer
from se_lightning.callbacks import publish
from se_lightning.callbacks.excitation.base import ExcitationCallback, Wanted
from se_lightning.excitation.doctor import (
    Finding,
    GateReport,
    diagnose,
    report_csv,
    report_text,
)
from se_lightning.excitation.summary import ExcitationSummary
from se_lightning.models import find_excitations

__all__ = ["GateDoctor"]

log = logging.getLogger(__name__)


class GateDoctor(ExcitationCallback):
    """Says which gates are constants, identities, shut, dead, NaN, or never called.

    A finding is told in words, once a layer and kind, and with W&B as an alert: NaN and gates
    that are never called at once, others when they have held for ``patience`` validations in a
    row, since gates may start as identities. In ``trainer.validate`` alone, all are told. At the
    end a table is logged, and saved as ``excitation/doctor.txt`` and ``doctor.csv``. Some dead
    hidden units, or some constant channels, are in the table and no alarm: healthy nets have
    them.

    Args:
        tolerance: all gates within it of 1 are an identity, of 0 shut; a root mean square.
        patience: validations.

    Raises:
        ValueError: naming the argument that does not fit.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[GateDoctor()], logger=False)
    """

    def __init__(self, tolerance: float = 0.01, patience: int = 3) -> None:
        if not 0 <= tolerance < 0.5:
            raise ValueError(f"`tolerance` (={tolerance}) must be in [0, 0.5): gates are 0 to 1.")
        positive_integer("patience", patience)
        self.tolerance = tolerance
        self.patience = patience
        self.reports: list[GateReport] = []
        self.path: Path | None = None
        self._streaks: dict[str, dict[str, int]] = {}  # by layer and kind, validations in a row
        self._told: dict[str, list[str]] = {}

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:  # noqa: D102
        return Wanted(hidden=True, examines=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew; what a checkpoint holds is loaded after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._streaks, self._told = {}, {}

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Examine, and tell what is new and has held."""
        weights = {
            path: parts.expand.weight
            for path, parts in find_excitations(trainer.lightning_module).items()
        }
        self.reports = diagnose(summary, weights, self.tolerance)  # type: ignore[arg-type]
        alone = trainer.state.fn == TrainerFn.VALIDATING
        news = [line for report in self.reports for line in self._news(report, alone)]
        if news:
            log.warning("%s", "\n".join(news))
            publish.alert(trainer, "Gates want a look", "\n".join(news))

    def _news(self, report: GateReport, alone: bool) -> list[str]:
        """Count how long each finding has held; say those whose time has come."""
        before = {} if alone else self._streaks.get(report.layer, {})
        grave = [finding for finding in report.findings if finding.grave]
        streaks = {finding.kind: before.get(finding.kind, 0) + 1 for finding in grave}
        told = [] if alone else self._told.get(report.layer, [])
        due = [
            finding
            for finding in grave
            if finding.kind not in told
            and (alone or finding.sure or streaks[finding.kind] >= self.patience)
        ]
        if not alone:
            self._streaks[report.layer] = streaks
            self._told[report.layer] = told + [finding.kind for finding in due]
        return [_sentence(report.layer, finding, streaks[finding.kind]) for finding in due]

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Log the table and save it."""
        text = report_text(self.reports)
        log.info("The gates over the validation set:\n%s", text)
        self.path = publish.folder(trainer) / "doctor.txt"
        self.path.write_text(text + "\n")
        self.path.with_suffix(".csv").write_text(report_csv(self.reports))

    def state_dict(self) -> dict[str, Any]:
        """Return how long each finding has held, and what was told."""
        return {
            "streaks": {layer: dict(kinds) for layer, kinds in self._streaks.items()},
            "told": {layer: list(kinds) for layer, kinds in self._told.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._streaks = {layer: dict(kinds) for layer, kinds in state_dict["streaks"].items()}
        self._told = {layer: list(kinds) for layer, kinds in state_dict["told"].items()}


def _sentence(layer: str, finding: Finding, held: int) -> str:
    long = f" for {held} validations" if held > 1 else ""
    return f"{layer}: {finding.text}{long}: {finding.advice}."
