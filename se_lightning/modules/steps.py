"""What a classifier does with a batch, in a Trainer or in a loop of Fabric."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from se_lightning.lightning import LightningModule
from se_lightning.models.layers.head import class_logits
from se_lightning.modules.batches import images_of, pair_of
from se_lightning.modules.metrics import evaluation, log_computed, log_metrics, require_samples

__all__ = ["ClassificationSteps"]

# Weight of an auxiliary classifier's loss, as in torchvision's training reference.
AUXILIARY_WEIGHT = 0.4


class ClassificationSteps(LightningModule):
    """The steps and metrics of :class:`se_lightning.ImageClassifier`, which sets the attributes.

    Each loader of an evaluation has metrics of its own: ``val_metrics`` is that of the first,
    ``val_metrics_1`` that of the second. Fabric logs the metrics of an epoch when the loop calls
    ``on_train_epoch_end``, ``on_validation_epoch_end`` or ``on_test_epoch_end``.
    """

    num_classes: int
    label_smoothing: float
    train_acc1: Metric
    train_acc1_mixed: Metric
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch; see :func:`se_lightning.modules.batches.pair_of`."""
        images, labels = self._pair(batch)
        output = self(images)
        outputs = output if isinstance(output, tuple) else (output,)
        logits, *auxiliary = map(class_logits, outputs)
        loss = self._loss(logits, labels)
        for more in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * self._loss(more, labels)
        # Labels from mixup or cutmix are probabilities.
        name, metric = "acc1", self.train_acc1
        if labels.ndim == 2:
            name, metric = "acc1_mixed", self.train_acc1_mixed
        metric.update(logits, labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        if self.fabric is None:  # which cannot log metrics; see `on_train_epoch_end`
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True)
        return loss

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = pair_of(batch)
        if labels.ndim == 2 and labels.shape[1] != self.num_classes:
            raise ValueError(
                f"The labels are probabilities of {labels.shape[1]} classes, but the network "
                f"tells {self.num_classes} apart. Labels are integers (N,) or probabilities "
                "(N, K); floats (N,) are probabilities of class 1 out of two."
            )
        return images, labels

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of one of the validation loaders to its metrics."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of one of the test loaders to its metrics."""
        self._evaluate("test", batch, dataloader_idx)

    def on_train_epoch_end(self) -> None:
        """Log the accuracy and reset it, if Fabric runs the loop."""
        if self.fabric is not None:
            log_computed(self, MetricCollection({"train/acc1": self.train_acc1}))
            log_computed(self, MetricCollection({"train/acc1_mixed": self.train_acc1_mixed}))

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        if type(self).validation_step is ClassificationSteps.validation_step:
            self._finish("val")

    def on_test_epoch_end(self) -> None:  # noqa: D102
        if type(self).test_step is ClassificationSteps.test_step:
            self._finish("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the class probabilities, (N, K); (N, 2) if the network has one logit."""
        return class_logits(self(images_of(batch))).softmax(dim=1)

    def _evaluate(self, split: str, batch: Any, loader: int) -> None:
        images, labels = self._pair(batch)
        logits = class_logits(self(images))
        name = f"{split}_metrics" + (f"_{loader}" if loader else "")
        if not hasattr(self, name):  # the number of loaders is not known before
            setattr(self, name, evaluation(self.num_classes, split).to(self.device))
        metrics = getattr(self, name)
        if len(labels):  # a rank may have no sample of the last batch
            metrics.update(logits, labels)
        log_metrics(self, name, metrics, len(labels))

    def _finish(self, split: str) -> None:
        if self.fabric is None:
            require_samples(self, split)
            return
        for name, metrics in self.named_children():
            if name.startswith(f"{split}_metrics") and isinstance(metrics, MetricCollection):
                log_computed(self, metrics, name.removeprefix(f"{split}_metrics"))
