"""Class selectivity of the gates in each validation."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from se_lightning.callbacks.excitation.base import Wanted, chosen_classes, known_classes
from se_lightning.callbacks.excitation.history import HistoryCallback, moment
from se_lightning.callbacks.publish import save_figure, send_metrics
from se_lightning.excitation import (
    ExcitationSummary,
    draw_selectivity,
    draw_selectivity_epochs,
)
from se_lightning.lightning import LightningModule, Trainer
from se_lightning.models import find_excitations

__all__ = ["ClassSelectivity"]

log = logging.getLogger(__name__)


class ClassSelectivity(HistoryCallback):
    """Callback that logs the share of each layer's gate variance that is between classes.

    It is 0 if the gates do not depend on the class, and 1 if they depend on the class alone; see
    :meth:`se_lightning.excitation.ExcitationSummary.selectivity`. All loggers get
    ``selectivity/<module path>`` after every validation, unless it is undefined. The folder
    ``excitation`` in the trainer's ``default_root_dir`` gets:

    - ``selectivity.npz``, all validations so far: ``epochs`` trained and ``steps`` (E,), ``layers``
      (L,), ``labels`` (K,), ``values`` (E, L). ``trainer.validate`` writes
      ``selectivity_validate.npz``;
    - at the end ``selectivity.png``, the last validation by depth, and ``selectivity_epochs.png``
      if there were several.

    Args:
        classes: A number of evenly spaced classes, ``"all"``, or a list of labels or names. Each
            class takes 16 bytes per channel on the device.

    Raises:
        ValueError: If `classes` selects fewer than two classes, or, when the run starts, if a class
            does not exist.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ClassSelectivity("all")], logger=False)
    """

    def __init__(self, classes: Sequence[int | str] | int | str = 100) -> None:
        super().__init__()
        if isinstance(classes, str):
            fits = classes == "all"
        else:
            fits = (classes if isinstance(classes, int) else len(classes)) >= 2
        if not fits:
            raise ValueError(
                f"`classes` (={classes!r}) must be a number of at least 2, 'all', or a list of at "
                "least 2 labels or names."
            )
        self.classes = classes
        self._labels: tuple[int, ...] = ()
        self._warned = False
        self._title = ""

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:
        """Request the classes, and log the memory that they need."""
        self._labels, self._warned = self._choose(trainer, pl_module), False
        channels = sum(parts.channels for parts in find_excitations(pl_module).values())
        if self._labels and channels and trainer.is_global_zero:
            # A sum and a sum of squares in float64 for each channel and class, and for the rest.
            size = (len(self._labels) + 1) * channels * 16
            log.info(
                "Class selectivity: %d classes, %.1f MB of statistics on the device.",
                len(self._labels),
                size / 1e6,
            )
        return Wanted(classes=self._labels)

    def _choose(self, trainer: Trainer, pl_module: LightningModule) -> tuple[int, ...]:
        classes = self.classes
        if isinstance(classes, int | str):
            count, _ = known_classes(trainer, pl_module)
            if count is None and classes == "all":
                raise ValueError(
                    "`classes` (=all) needs a module or datamodule that defines `num_classes`. "
                    "Otherwise pass a list of labels."
                )
            if count is None:
                log.info(
                    "No class selectivity, since neither the module nor the datamodule defines "
                    "`num_classes`. Pass labels: ClassSelectivity(classes=[0, 1, ...])."
                )
                return ()
            classes = count if isinstance(classes, str) else classes
        return tuple(chosen_classes(classes, trainer, pl_module))

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Log the selectivity of each layer, and save all validations so far."""
        if not self._labels:
            return
        seen = sum(summary.class_samples(label) > 0 for label in self._labels)
        if seen < 2 and not self._warned:
            self._warned = True
            log.warning(
                "Class selectivity needs samples of at least two of the chosen classes; the "
                "validation batches have %d.",
                seen,
            )
        values = summary.selectivity(self._labels)
        rows = zip(summary.layers, values.tolist(), strict=True)
        if metrics := {f"selectivity/{k}": v for k, v in rows if np.isfinite(v)}:
            send_metrics(trainer, metrics)
        self._title = f"{len(self._labels)} classes, validation set{moment(trainer)}"
        common = {"layers": summary.layers, "labels": self._labels}
        self.keep(trainer, "selectivity", {"values": values}, common)

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Plot the last validation, and the selectivity over epochs."""
        if not self._labels:
            return
        layers, title = summary.layers, f"Class selectivity of the gates, {self._title}"
        draw = partial(draw_selectivity, layers, summary.selectivity(self._labels), title)
        save_figure(trainer, "selectivity", draw)
        if course := self.course(trainer):
            epochs = course["epochs"].tolist()
            draw = partial(draw_selectivity_epochs, layers, epochs, course["values"], title)
            save_figure(trainer, "selectivity_epochs", draw)
