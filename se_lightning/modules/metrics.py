"""Metrics of training, validation and test."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from se_lightning.lightning import Trainer

__all__ = ["MeanCrossEntropy", "MixedAccuracy", "accuracy", "evaluation", "require_samples"]


class _Mean(Metric):
    """Mean over the samples of all batches and ranks."""

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.samples


class MeanCrossEntropy(_Mean):
    """Cross-entropy per sample, in nats.

    ``self.log(..., sync_dist=True)`` would be wrong: Lightning averages the ranks' numbers of
    samples as integers, so 11 and 10 become 10 and the loss is 5 % too large (2.6.6, result.py).
    """

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, K), labels (N,) or probabilities (N, K)."""
        self.total = self.total + F.cross_entropy(logits, labels, reduction="sum")
        self.samples = self.samples + len(labels)


class MixedAccuracy(_Mean):
    """Accuracy for mixed labels (mixup, cutmix): the share of the predicted class, in [0, 1].

    A sample that is 0.7 of class a and 0.3 of class b counts 0.7 if a is predicted: the papers'
    ``lam * accuracy(a) + (1 - lam) * accuracy(b)``.
    """

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, K), probabilities (N, K)."""
        self.total = self.total + labels.gather(1, logits.argmax(1, keepdim=True)).sum()
        self.samples = self.samples + len(labels)


class _Accuracy(MulticlassAccuracy):
    """Accuracy that takes probabilities for labels; torchmetrics would count every entry."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits (N, K), labels (N,) or probabilities (N, K)."""
        super().update(preds, target.argmax(1) if target.ndim == 2 else target)


def accuracy(num_classes: int, k: int) -> Metric:
    """Return top-k accuracy over all samples.

    The label of a sample with probabilities is its most probable class.
    """
    # validate_args reads the values, which would synchronize with the GPU in every step.
    return _Accuracy(num_classes, top_k=k, average="micro", validate_args=False)


def evaluation(num_classes: int, split: str) -> MetricCollection:
    """Return the metrics of a split: loss, top-1 and, for more than 5 classes, top-5."""
    metrics: dict[str, Metric | MetricCollection] = {"loss": MeanCrossEntropy()}
    metrics["acc1"] = accuracy(num_classes, 1)
    if num_classes > 5:
        metrics["acc5"] = accuracy(num_classes, 5)
    # Compute groups would merge top-1 and top-5 if they are equal on the first batch.
    return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)


def require_samples(trainer: Trainer, metrics: MetricCollection) -> None:
    """Refuse the metrics of a split of which no rank has evaluated an image.

    Call it on all ranks. The sanity check is exempt, because it sees only a few batches.

    Raises:
        ValueError: If there was no image, so that the accuracy would be 0 and the loss NaN.
    """
    mine = metrics[f"{metrics.prefix}loss"].samples
    if trainer.sanity_checking or trainer.strategy.reduce(mine, reduce_op="sum") > 0:
        return
    split = str(metrics.prefix).rstrip("/")
    raise ValueError(
        f"No {split} image was evaluated, so there is no accuracy: the data set is empty, or none "
        "of its files can be read (see bad_files.txt)."
    )
