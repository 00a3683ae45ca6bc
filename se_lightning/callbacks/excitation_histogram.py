"""Histograms of every gate's values, an epoch and a layer."""

import logging
from functools import partial
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_lightning.excitation import GateHistogram, draw_histogram, find_gates
from se_lightning.models import DoubleSigmoid

__all__ = ["ExcitationHistogram"]

log = logging.getLogger(__name__)


class ExcitationHistogram(Callback):
    """Counts the excitations of each squeeze-and-excitation layer while validating.

    Works in any Trainer and on any model with gates of this package, timm or torchvision. Counting
    is on the device; ranks are summed once an epoch. Each W&B logger then gets a histogram a
    layer, ``excitation/<module path>``. At the end a picture, depth against gate value, is saved
    as ``excitation/histogram.png`` under the trainer's ``default_root_dir`` and sent to W&B.
    Nothing is counted in training and in the sanity check.

    Args:
        bins: number of equal bins on [0, 1], or [0, 2] where a gate is twice a sigmoid; W&B draws
            512 at the most.

    Raises:
        ValueError: for bins below 1 or above 512.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ExcitationHistogram()], logger=False)
    """

    def __init__(self, bins: int = 64) -> None:
        if not 1 <= bins <= 512:
            raise ValueError(f"`bins` (={bins}) must be in 1 to 512, the most that W&B draws.")
        self.bins = bins
        self.picture: Path | None = None
        self._histogram: GateHistogram | None = None
        self._handles: list[RemovableHandle] = []
        self._recording = False
        self._counts: Tensor | None = None  # of the last epoch, all ranks'

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hook the gates; before a first compiled call, after which a hook would never fire."""
        self.teardown(trainer, pl_module, stage)  # an earlier run may have ended in an exception
        if stage not in ("fit", "validate"):
            return
        gates = find_gates(pl_module)
        if not gates:
            log.info("No squeeze-and-excitation gates in the model: no excitation histograms.")
            return
        doubled = any(isinstance(gate, DoubleSigmoid) for gate in gates.values())
        self._histogram = GateHistogram(list(gates), self.bins, 2.0 if doubled else 1.0)
        self._handles = [
            gate.register_forward_hook(partial(self._record, layer))
            for layer, gate in enumerate(gates.values())
        ]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        for handle in self._handles:
            handle.remove()
        self._handles, self._histogram, self._counts = [], None, None
        self._recording = False

    def _record(self, layer: int, gate: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if self._recording and self._histogram is not None:
            self._histogram.update(layer, output.detach())

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._histogram is not None and not trainer.sanity_checking:
            self._histogram.to(pl_module.device).reset()
            self._recording = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over ranks, all of them taking part; the first sends."""
        if self._histogram is None or not self._recording:
            return
        self._recording = False
        self._counts = self._histogram.compute().cpu()
        self._warn_of_lost_values()
        if trainer.is_global_zero:
            self._send(trainer, self._counts[:, : self.bins])
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._draw(trainer)

    def _warn_of_lost_values(self) -> None:
        assert self._histogram is not None
        assert self._counts is not None
        lost, upper = self._counts[:, self.bins :].tolist(), self._histogram.upper
        for layer, (nan, outside) in zip(self._histogram.layers, lost, strict=True):
            if nan or outside:
                log.warning("%s: %d gates are NaN, %d outside [0, %g].", layer, nan, outside, upper)

    def _send(self, trainer: Trainer, counts: Tensor) -> None:
        assert self._histogram is not None
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers:
            return
        import wandb

        edges = self._histogram.edges
        histograms = {
            f"excitation/{layer}": wandb.Histogram(np_histogram=(row.numpy(), edges))
            for layer, row in zip(self._histogram.layers, counts, strict=True)
        }
        for logger in loggers:
            # Not experiment.log(step=...): W&B's own step counts rows, and drops what goes back.
            logger.log_metrics(histograms, step=trainer.global_step)  # type: ignore[arg-type]

    def _draw(self, trainer: Trainer) -> None:
        if self._histogram is None or self._counts is None or not trainer.is_global_zero:
            return
        self.picture = Path(trainer.default_root_dir) / "excitation" / "histogram.png"
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        title = f"Excitations on the validation set, epoch {trainer.current_epoch}"
        counts = self._counts[:, : self.bins].numpy()
        figure = draw_histogram(self._histogram.layers, counts, title, self._histogram.upper)
        figure.savefig(self.picture, dpi=120)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(
                    "excitation/histogram", [str(self.picture)], step=trainer.global_step
                )
