"""Mean gates per channel for a few classes and layers."""

import logging
from collections.abc import Sequence
from functools import partial

from se_lightning.callbacks.excitation.base import ExcitationCallback, Wanted, chosen_classes
from se_lightning.callbacks.excitation.history import epochs_trained, moment
from se_lightning.callbacks.publish import save_arrays, save_figure
from se_lightning.excitation import ExcitationSummary, curve_arrays, draw_curves, draw_spread
from se_lightning.excitation.curves import find_layers
from se_lightning.lightning import LightningModule, Trainer
from se_lightning.models import find_excitations

__all__ = ["ExcitationCurves"]

log = logging.getLogger(__name__)


class ExcitationCurves(ExcitationCallback):
    """Callback that plots the paper's Figures 6 and 7 for the validation set.

    Gates hardly depend on the class in early layers, and increasingly with depth. Files are saved
    in the folder ``excitation`` in the trainer's ``default_root_dir``, and sent to W&B and
    TensorBoard:

    - ``curves.png``: the mean gate of each class and of all samples, by channel;
    - ``spread.png``: mean and standard deviation within each of the first two classes;
    - ``curves.npz``: the data, see :func:`se_lightning.excitation.curve_arrays`, and ``epochs``
      trained.

    Args:
        classes: Labels or names, or a number of evenly spaced classes. None selects goldfish, pug,
            plane and cliff if there are 1000 classes, else the first four.
        layers: Module paths or indices of the SE modules. None selects up to six, evenly spaced.
        channels: Maximum number of channels per layer, evenly spaced.
        every_n_epochs: Epochs between two plots; the last validation is always plotted.

    Raises:
        ValueError: If `channels` or `every_n_epochs` is below 1, or, when the run starts, if a
            class or layer does not exist.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ExcitationCurves(classes=[3, 8])], logger=False)
    """

    def __init__(
        self,
        classes: Sequence[int | str] | int | None = None,
        layers: Sequence[int | str] | None = None,
        channels: int = 50,
        every_n_epochs: int = 1,
    ) -> None:
        for name, value in (("channels", channels), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"`{name}` (={value}) must be at least 1.")
        self.classes = classes
        self.layers = layers
        self.channels = channels
        self.every_n_epochs = every_n_epochs
        self._names: dict[int, str] = {}
        self._warned = False
        self._epochs, self._when = 0.0, ""
        self._drawn: ExcitationSummary | None = None

    def wanted(self, trainer: Trainer, pl_module: LightningModule) -> Wanted:
        """Request the classes; check that they and the layers exist."""
        self._names = chosen_classes(self.classes, trainer, pl_module)
        self._warned = False
        if layers := list(find_excitations(pl_module)):
            find_layers(layers, self.layers)
        return Wanted(classes=tuple(self._names))

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Plot every n epochs, and warn once about classes without samples."""
        missing = [name for label, name in self._names.items() if not summary.class_samples(label)]
        if missing and not self._warned:
            self._warned = True
            log.warning(
                "The validation set has no samples of %s, so the excitation curves leave them out. "
                "Choose others with `classes`.",
                ", ".join(missing),
            )
        self._epochs, self._when = epochs_trained(trainer), moment(trainer)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, summary)

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Plot the last validation if that has not been done."""
        if self._drawn is not summary:
            self._draw(trainer, summary)

    def _draw(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        self._drawn = summary
        arrays = curve_arrays(summary, self._names, layers=self.layers, channels=self.channels)
        save_arrays(trainer, "curves", epochs=self._epochs, **arrays)
        for name, draw, what in (
            ("curves", draw_curves, "Mean excitation of each class"),
            ("spread", draw_spread, "Mean and standard deviation of the excitation of a class"),
        ):
            drawing = partial(
                draw,
                summary,
                self._names,
                layers=self.layers,
                channels=self.channels,
                title=f"{what}, validation set{self._when}",
            )
            save_figure(trainer, name, drawing)
