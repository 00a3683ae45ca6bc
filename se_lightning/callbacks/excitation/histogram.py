"""Histograms of the gate values in each validation."""

from functools import partial
from pathlib import Path

from se_lightning.callbacks.excitation.base import Wanted
from se_lightning.callbacks.excitation.history import HistoryCallback, moment
from se_lightning.callbacks.publish import save_figure, send_histograms
from se_lightning.excitation import ExcitationSummary, draw_epochs, draw_histogram
from se_lightning.lightning import LightningModule, Trainer

__all__ = ["ExcitationHistogram"]


class ExcitationHistogram(HistoryCallback):
    """Callback that counts the gates of each squeeze-and-excitation layer during validation.

    Works in any Trainer, with gates of this package, timm or torchvision. Values are counted on the
    device and summed over ranks once per epoch. W&B and TensorBoard get one histogram per layer,
    ``excitation/<module path>``. The folder ``excitation`` in the trainer's ``default_root_dir``
    gets:

    - ``histogram.npz``, all validations so far: ``epochs`` trained and ``steps`` (E,), ``layers``
      (L,), ``edges`` (B + 1,), ``counts`` (E, L, B + 2) in the bins, of NaN, and out of range, and
      ``means`` (E, L). ``trainer.validate`` writes ``histogram_validate.npz``;
    - at the end ``histogram.png``, depth against gate value in the last validation, and
      ``epochs.png``, the mean gate of each layer over epochs, if there were several validations.

    Args:
        bins: Number of equal bins on [0, 1], or on the range of the gates ([0, 2] for a double
            sigmoid); at most 512, the maximum of W&B. Of several such callbacks, the largest
            number applies to all.

    Attributes:
        picture: Path of ``histogram.png``; None before it is drawn.

    Raises:
        ValueError: If `bins` is not from 1 to 512.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ExcitationHistogram()], logger=False)
    """

    def __init__(self, bins: int = 64) -> None:
        super().__init__()
        if not 1 <= bins <= 512:
            raise ValueError(f"`bins` (={bins}) must be from 1 to 512, the maximum of W&B.")
        self.bins = bins
        self.picture: Path | None = None
        self._title = ""

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:
        """Request the bins."""
        return Wanted(bins=self.bins)

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Log the histograms, and save all validations so far."""
        self._title = f"Excitations on the validation set{moment(trainer)}"
        counts = summary.histogram()
        bins = len(summary.edges) - 1
        rows = dict(zip(summary.layers, counts[:, :bins], strict=True))
        send_histograms(trainer, {f"excitation/{k}": v for k, v in rows.items()}, summary.edges)
        values = {"counts": counts, "means": summary.layer_mean()}
        common = {"layers": summary.layers, "edges": summary.edges}
        self.keep(trainer, "histogram", values, common)

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Plot the last validation, and the means over epochs."""
        counts = summary.histogram()[:, : len(summary.edges) - 1]
        lower, upper = summary.edges[[0, -1]].tolist()
        draw = partial(draw_histogram, summary.layers, counts, self._title, lower, upper)
        self.picture = save_figure(trainer, "histogram", draw)
        if course := self.course(trainer):
            title = f"Mean excitations on the validation set, {len(self.history)} validations"
            epochs = course["epochs"].tolist()
            draw = partial(draw_epochs, summary.layers, epochs, course["means"], title)
            save_figure(trainer, "epochs", draw)
