"""Metrics of training, validation and test."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from se_lightning.lightning import LightningModule

__all__ = [
    "MeanCrossEntropy",
    "MixedAccuracy",
    "accuracy",
    "evaluation",
    "log_computed",
    "log_metrics",
    "require_samples",
]


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


def log_metrics(module: LightningModule, attribute: str, metrics: MetricCollection, n: int) -> None:
    """Let Lightning log metrics at the end of an evaluation.

    Args:
        module: Module that has the metrics.
        attribute: Name of the metrics in the module.
        metrics: Metrics to log.
        n: Number of samples in the batch.
    """
    if module.fabric is not None:  # it cannot log metrics; see `log_computed`
        return
    for key, metric in metrics.items(keep_base=True):
        module.log(
            f"{metrics.prefix}{key}",
            metric,
            prog_bar=True,
            batch_size=n,
            # Lightning knows only metrics that the module had when it first logged one.
            metric_attribute=f"{attribute}.{key}",
        )


def log_computed(module: LightningModule, metrics: MetricCollection, suffix: str = "") -> None:
    """Log metrics through Fabric, and reset them, if they have seen samples.

    Args:
        module: Module that Fabric has set up.
        metrics: Metrics to log.
        suffix: Underscore and number of a further loader, or nothing.
    """
    if any(metric.update_called for metric in metrics.values()):
        loader = f"/dataloader_idx{suffix}" if suffix else ""
        module.log_dict({f"{name}{loader}": value for name, value in metrics.compute().items()})
        metrics.reset()


def require_samples(module: LightningModule, split: str) -> None:
    """Refuse the metrics of a split of which no rank has evaluated an image.

    Call it on all ranks. The sanity check is exempt, because it sees only a few batches.

    Args:
        module: Module with the metrics of each loader.
        split: ``"val"`` or ``"test"``.

    Raises:
        ValueError: If a loader had no image, so that the accuracy would be 0 and the loss NaN.
    """
    trainer = module.trainer
    for loader, batches in enumerate(getattr(trainer, f"num_{split}_batches")):
        metrics = getattr(module, f"{split}_metrics" + (f"_{loader}" if loader else ""), None)
        if trainer.sanity_checking or (loader and not batches):
            continue
        mine = torch.tensor(0) if metrics is None else metrics["loss"].samples
        mine = mine.to(module.device)
        if trainer.strategy.reduce(mine, reduce_op="sum") > 0:
            continue
        where = f" in loader {loader}" if loader else ""
        raise ValueError(
            f"No {split} image was evaluated{where}, so there is no accuracy: the data set is "
            "empty, or none of its files can be read (see bad_files.txt)."
        )
