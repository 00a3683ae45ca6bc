"""Histograms of every gate's values, an epoch and a layer."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from se_lightning.callbacks.excitation.base import Wanted
from se_lightning.callbacks.excitation.history import HistoryCallback, moment
from se_lightning.callbacks.publish import save_figure, send_histograms
from se_lightning.excitation import ExcitationSummary, draw_epochs, draw_histogram

__all__ = ["ExcitationHistogram"]


class ExcitationHistogram(HistoryCallback):
    """Counts the excitations of each squeeze-and-excitation layer while validating.

    Works in any Trainer and on any model with gates of this package, timm or torchvision. Counting
    is on the device; ranks are summed once an epoch. W&B and TensorBoard get a histogram a layer,
    ``excitation/<module path>``. In the folder ``excitation`` under the trainer's
    ``default_root_dir``:

    - ``histogram.npz``: all validations so far: ``epochs`` trained and ``steps`` (E,), ``layers``
      (L,), ``edges`` (B + 1,), ``counts`` (E, L, B + 2): the bins, then NaN, then what lies
      outside; ``means`` (E, L). Of ``trainer.validate``, ``histogram_validate.npz``.
    - at the end ``histogram.png``, depth against gate value of the last validation; and, if there
      were several, ``epochs.png``, the layers' mean gates over epochs.

    Args:
        bins: number of equal bins on [0, 1], or as far as the gates go ([0, 2] where one is twice
            a sigmoid); W&B draws 512 at the most. Where several callbacks want bins, the most.

    Attributes:
        picture: path of ``histogram.png``; None before it is drawn.

    Raises:
        ValueError: for bins below 1 or above 512.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ExcitationHistogram()], logger=False)
    """

    def __init__(self, bins: int = 64) -> None:
        super().__init__()
        if not 1 <= bins <= 512:
            raise ValueError(f"`bins` (={bins}) must be in 1 to 512, the most that W&B draws.")
        self.bins = bins
        self.picture: Path | None = None
        self._title = ""

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:
        """Ask for the bins."""
        return Wanted(bins=self.bins)

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Send the histograms, and save all so far."""
        self._title = f"Excitations on the validation set{moment(trainer)}"
        counts = summary.histogram()
        bins = len(summary.edges) - 1
        rows = dict(zip(summary.layers, counts[:, :bins], strict=True))
        send_histograms(trainer, {f"excitation/{k}": v for k, v in rows.items()}, summary.edges)
        values = {"counts": counts, "means": summary.layer_mean()}
        common = {"layers": summary.layers, "edges": summary.edges}
        self.keep(trainer, "histogram", values, common)

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Draw the last validation and the course of all."""
        counts = summary.histogram()[:, : len(summary.edges) - 1]
        lower, upper = summary.edges[[0, -1]].tolist()
        figure = draw_histogram(summary.layers, counts, self._title, lower, upper)
        self.picture = save_figure(trainer, "histogram", figure)
        if course := self.course(trainer):
            title = f"Mean excitations on the validation set, {len(self.history)} validations"
            means = draw_epochs(summary.layers, course["epochs"].tolist(), course["means"], title)
            save_figure(trainer, "epochs", means)
