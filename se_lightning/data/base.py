"""What all datamodules share: the order, the ranks, the options of the augmentation."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from se_lightning.arguments import positive_integer
from se_lightning.data.samplers import EvalBatches, OneEpoch, TrainBatches
from se_lightning.data.transforms.color import ColorJitter
from se_lightning.data.transforms.on_device import Erasing, Finish, Mixing
from se_lightning.data.transforms.per_image import SampleTransforms

__all__ = ["ImageDataModule", "ImageOptions", "cores", "next_batch"]


class ImageOptions(TypedDict, total=False):
    """The options of every datamodule; see :class:`ImageDataModule`."""

    batch_size: int
    eval_batch_size: int
    seed: int
    rotation: float
    pixel_jitter: int
    color_jitter: float | Sequence[float]
    rand_augment: int | None
    trivial_augment: bool
    random_erasing: float
    cutout: int
    mixup: float
    cutmix: float
    repeats: int


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def next_batch(trainer: Trainer) -> tuple[int, int]:
    """Return which batch a fit trains on next: the epoch, and the batch in it, both from 0."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if epochs.ready == epochs.processed:  # between two epochs
        return epochs.processed, 0
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    batch = batches.processed
    if batch >= trainer.num_training_batches:
        return epochs.processed + 1, 0
    return epochs.processed, batch


class ImageDataModule(LightningDataModule):
    """Loaders whose order depends on (seed, epoch) only, and whose pixels on the sample too.

    A subclass names its images and says, in :meth:`dataset`, what a batch of them is, and in
    :meth:`labels`, what they show.

    Args:
        batch_size: samples per device in training, at least 2.
        eval_batch_size: the most samples per device in validation and test.
        num_workers: worker processes of a rank; None is a core each, 8 at most.
        seed: of the training order and the augmentation.
        rotation: degrees, at most, to either side.
        pixel_jitter: the most that is added to each pixel's channel or taken off, of 255.
        color_jitter: strength of brightness, contrast and saturation, or a list of theirs and the
            hue's.
        rand_augment: magnitude (0 to 30) of RandAugment's two operations; None for none.
        trivial_augment: one random operation of random strength.
        random_erasing: probability that an image loses a box.
        cutout: side of the square that every image loses, pixels.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none. With both, a coin decides for each batch.
        repeats: copies of a sample in an epoch, each with an augmentation of its own.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    image_size: int
    in_channels: int = 3
    mean: float | Sequence[float]
    std: float | Sequence[float]
    class_names: Sequence[str]

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        num_workers: int | None = None,
        seed: int = 0,
        rotation: float = 0.0,
        pixel_jitter: int = 0,
        color_jitter: float | Sequence[float] = 0.0,
        rand_augment: int | None = None,
        trivial_augment: bool = False,
        random_erasing: float = 0.0,
        cutout: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        positive_integer("repeats", repeats)
        # One call serves the subclasses too: it collects the arguments of all constructors.
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeats = repeats
        self._begin = (0, 0)
        self._resumed: Trainer | None = None  # that began with a checkpoint
        self.transforms = SampleTransforms(
            seed=seed,
            rotation=rotation,
            rand_augment=rand_augment,
            trivial_augment=trivial_augment,
            pixel_jitter=pixel_jitter,
        )
        self.color = ColorJitter(color_jitter, seed=seed)
        self.erasing = Erasing(random_erasing=random_erasing, cutout=cutout, seed=seed)
        self.mixing = Mixing(mixup=mixup, cutmix=cutmix, seed=seed)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def dataset(self, split: str, *, augmented: bool) -> Dataset:
        """Return ``train``, ``val`` or ``test``; an item of it, by (epoch, keys), is a batch."""
        raise TypeError(f"{type(self).__name__} must define `dataset`.")

    def labels(self, split: str) -> np.ndarray:
        """Return the labels (N,) of ``train``, ``val`` or ``test``."""
        raise TypeError(f"{type(self).__name__} must define `labels`.")

    def finish(self, *, augmented: bool) -> Finish:
        """Return the last step, which makes bytes what the network sees."""
        if not augmented:
            return Finish(self.mean, self.std)
        return Finish(
            self.mean,
            self.std,
            color=self.color,
            erasing=self.erasing,
            mixing=self.mixing,
            num_classes=self.num_classes,
        )

    def train_dataloader(self, epoch: int | None = None, batch: int = 0) -> DataLoader:
        """Return the training batches, from any one on.

        Args:
            epoch: the first one; None is where the trainer's checkpoint was, else its epoch, or 0.
            batch: of that epoch, the first one.

        Raises:
            ValueError: if the epoch has no such batch.
        """
        dataset = self.dataset("train", augmented=True)
        order = TrainBatches(
            len(dataset),  # type: ignore[arg-type]
            self.batch_size,
            seed=self.seed,
            repeats=self.repeats,
            **self._ranks(),
        )
        if epoch is None:
            epoch = 0 if self.trainer is None else self.trainer.current_epoch
            # Before Lightning has restored its epoch it asks already, for the schedule's length.
            if self._resumed is self.trainer and self._begin[0] >= epoch:
                epoch, batch = self._begin
        order.start_at(epoch, batch)
        return self._loader(dataset, order)

    def state_dict(self) -> dict[str, int]:
        """Return where the training is: a checkpoint's next batch, and on how many processes."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return {}
        epoch, batch = next_batch(self.trainer)
        return {"epoch": epoch, "batch": batch, **self._shares()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next training loader with a checkpoint's next batch.

        Raises:
            MisconfigurationException: if it is within an epoch that was cut into other batches.
        """
        ours, theirs = self._shares(), {key: state_dict[key] for key in self._shares()}
        if state_dict["batch"] and ours != theirs:
            raise MisconfigurationException(
                f"The checkpoint is within an epoch of {theirs['world_size']} processes with "
                f"batch_size={theirs['batch_size']}, and this run has {ours['world_size']} with "
                f"batch_size={ours['batch_size']}: go on with as many, or begin a new run with "
                "these weights (model.weights=)."
            )
        self._begin, self._resumed = (state_dict["epoch"], state_dict["batch"]), self.trainer
        # Lightning looks at the loader alone, and warns of what has just been seen to.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")

    def _shares(self) -> dict[str, int]:
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return {"world_size": world_size, "batch_size": self.batch_size}

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:  # noqa: D102
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader:
        """Return the batches of ``train``, ``val`` or ``test``, in order and not augmented."""
        dataset = self.dataset(split, augmented=False)
        size = len(dataset)  # type: ignore[arg-type]
        return self._loader(dataset, EvalBatches(size, self.eval_batch_size, **self._ranks()))

    def _loader(self, dataset: Dataset, order: TrainBatches | EvalBatches) -> DataLoader:
        return DataLoader(dataset, **self._options(order))

    def _options(self, order: TrainBatches | EvalBatches) -> dict[str, Any]:
        workers = self._workers()
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return {
            "sampler": OneEpoch(order) if overfits else order,
            "batch_size": None,  # the sampler's items are batches already
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._pin_memory(),
        }

    def _workers(self) -> int:
        """Return the worker processes of a rank; None is a core each, 8 at most."""
        if self.num_workers is not None:
            return self.num_workers
        ranks = 1 if self.trainer is None else self.trainer.num_devices
        return min(8, max(1, cores() // ranks))

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _pin_memory(self) -> bool:
        return self._on_gpu()

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}
