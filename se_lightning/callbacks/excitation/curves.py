"""Mean gates channel by channel, for a few classes at a few depths."""

import logging
from collections.abc import Sequence

from pytorch_lightning import LightningModule, Trainer

from se_lightning.callbacks.excitation.base import ExcitationCallback, Wanted, chosen_classes
from se_lightning.callbacks.excitation.history import epochs_trained, moment
from se_lightning.callbacks.publish import save_arrays, save_figure
from se_lightning.excitation import ExcitationSummary, curve_arrays, draw_curves, draw_spread
from se_lightning.excitation.curves import find_layers
from se_lightning.models import find_excitations

__all__ = ["ExcitationCurves"]

log = logging.getLogger(__name__)


class ExcitationCurves(ExcitationCallback):
    """Draws the paper's Figures 6 and 7 of the validation set.

    In early layers the gates hardly tell classes apart; with depth they do more. Saves in the
    folder ``excitation`` under the trainer's ``default_root_dir``, and sends to W&B and
    TensorBoard:

    - ``curves.png``: by channel, the mean gate of each class and of all samples;
    - ``spread.png``: mean and standard deviation within each of the first two classes;
    - ``curves.npz``: what they show, :func:`se_lightning.excitation.curve_arrays`, and ``epochs``
      trained.

    Args:
        classes: labels or names; None is goldfish, pug, plane and cliff of 1000 classes, else the
            first four. A number is that many, evenly spread over all.
        layers: module paths of the SE modules, or their indices; None is the first, the last, and
            up to four evenly between them.
        channels: evenly sampled of each layer; all where there are fewer.
        every_n_epochs: pictures are drawn every so many epochs, and at the end.

    Raises:
        ValueError: naming the argument that does not fit; when a run begins, the class or layer
            that does not exist.

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
        """Ask for the classes, and check that they and the layers exist."""
        self._names = chosen_classes(self.classes, trainer, pl_module)
        self._warned = False
        if layers := list(find_excitations(pl_module)):
            find_layers(layers, self.layers)
        return Wanted(classes=tuple(self._names))

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Draw where it is time, and say once which class is missing."""
        missing = [name for label, name in self._names.items() if not summary.class_samples(label)]
        if missing and not self._warned:
            self._warned = True
            log.warning(
                "The validation set has no sample of %s: the excitation curves are those of the "
                "others. `classes` chooses which.",
                ", ".join(missing),
            )
        self._epochs, self._when = epochs_trained(trainer), moment(trainer)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, summary)

    def on_last_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Draw the last validation, if that is not done."""
        if self._drawn is not summary:
            self._draw(trainer, summary)

    def _draw(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        self._drawn = summary
        arrays = curve_arrays(summary, self._names, layers=self.layers, channels=self.channels)
        save_arrays(trainer, "curves", epochs=self._epochs, **arrays)
        for name, draw, what in (
            ("curves", draw_curves, "Mean excitation of each class"),
            ("spread", draw_spread, "Mean excitation of a class, and its standard deviation"),
        ):
            figure = draw(
                summary,
                self._names,
                layers=self.layers,
                channels=self.channels,
                title=f"{what}, validation set{self._when}",
            )
            save_figure(trainer, name, figure)
