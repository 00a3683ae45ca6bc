"""The gate doctor: a table of the condition of the gates, and alarms."""

import logging
from pathlib import Path
from typing import Any

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
from se_lightning.lightning import LightningModule, Trainer, TrainerFn
from se_lightning.models import find_excitations

__all__ = ["GateDoctor"]

log = logging.getLogger(__name__)


class GateDoctor(ExcitationCallback):
    """Callback that diagnoses unhealthy gates, and gates that are never executed.

    Each finding is logged as a warning, once per layer and kind, and sent as an alert to W&B:
    immediately for NaN and gates that are never executed, otherwise after ``patience`` consecutive
    validations, since gates may start as identities. ``trainer.validate`` reports everything. At
    the end, a table is logged and saved as ``excitation/doctor.txt`` and ``doctor.csv``. A few dead
    hidden units or constant channels are listed there without an alarm: healthy networks have them.

    Args:
        tolerance: Gates within this root mean square distance of 1 are an identity; of 0, shut.
        patience: Number of consecutive validations before an alarm.

    Raises:
        ValueError: If `tolerance` is not in [0, 0.5), or `patience` is not a positive integer.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[GateDoctor()], logger=False)
    """

    def __init__(self, tolerance: float = 0.01, patience: int = 3) -> None:
        if not 0 <= tolerance < 0.5:
            raise ValueError(f"`tolerance` (={tolerance}) must be in [0, 0.5).")
        positive_integer("patience", patience)
        self.tolerance = tolerance
        self.patience = patience
        self.reports: list[GateReport] = []
        self.path: Path | None = None
        self._streaks: dict[str, dict[str, int]] = {}  # consecutive validations by layer and kind
        self._reported: dict[str, list[str]] = {}

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:  # noqa: D102
        return Wanted(hidden=True, examines=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the state; a checkpoint is loaded after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._streaks, self._reported = {}, {}

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Diagnose the gates, and report new findings."""
        weights = {
            path: parts.expand.weight
            for path, parts in find_excitations(trainer.lightning_module).items()
        }
        self.reports = diagnose(summary, weights, self.tolerance)  # type: ignore[arg-type]
        alone = trainer.state.fn == TrainerFn.VALIDATING
        news = [line for report in self.reports for line in self._news(report, alone)]
        if news:
            log.warning("%s", "\n".join(news))
            publish.alert(trainer, "Unhealthy gates", "\n".join(news))

    def _news(self, report: GateReport, alone: bool) -> list[str]:
        """Update the number of validations of each finding; return the sentences to report."""
        before = {} if alone else self._streaks.get(report.layer, {})
        grave = [finding for finding in report.findings if finding.grave]
        streaks = {finding.kind: before.get(finding.kind, 0) + 1 for finding in grave}
        reported = [] if alone else self._reported.get(report.layer, [])
        due = [
            finding
            for finding in grave
            if finding.kind not in reported
            and (alone or finding.sure or streaks[finding.kind] >= self.patience)
        ]
        if not alone:
            self._streaks[report.layer] = streaks
            self._reported[report.layer] = reported + [finding.kind for finding in due]
        return [_sentence(report.layer, finding, streaks[finding.kind]) for finding in due]

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Log and save the table."""
        text = report_text(self.reports)
        log.info("Gates on the validation set:\n%s", text)
        with publish.output(trainer, "doctor.txt") as file:
            file.write_text(text + "\n", encoding="utf-8")
            self.path = Path(trainer.default_root_dir) / "excitation" / "doctor.txt"
        with publish.output(trainer, "doctor.csv") as file:
            file.write_text(report_csv(self.reports), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations of each finding, and the findings already reported."""
        return {
            "streaks": {layer: dict(kinds) for layer, kinds in self._streaks.items()},
            "told": {layer: list(kinds) for layer, kinds in self._reported.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._streaks = {layer: dict(kinds) for layer, kinds in state_dict["streaks"].items()}
        self._reported = {layer: list(kinds) for layer, kinds in state_dict["told"].items()}


def _sentence(layer: str, finding: Finding, held: int) -> str:
    long = f" for {held} validations" if held > 1 else ""
    return f"{layer}: {finding.text}{long}: {finding.advice}."
