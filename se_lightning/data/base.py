"""The base class of all datamodules: sample order, ranks, and augmentation options."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch.utils.data import DataLoader, Dataset

from se_lightning.arguments import boolean, plain, positive_integer
from se_lightning.data.cores import cores
from se_lightning.data.dataset import ImageDataset, Loader, batches_of
from se_lightning.data.identity import IdentifiedData
from se_lightning.data.options import ImageOptions, constructor_of
from se_lightning.data.position import is_running, next_batch, require_same_shares
from se_lightning.data.samplers import EpochCounter, EvalSampler, OneEpoch, TrainSampler
from se_lightning.data.transforms.color import ColorJitter
from se_lightning.data.transforms.on_device import Erasing, Finish, Mixing
from se_lightning.data.transforms.per_image import SampleTransforms
from se_lightning.lightning import (
    LightningDataModule,
    MisconfigurationException,
    Trainer,
    TrainerFn,
    check_trainer,
    not_a_loader,
)

__all__ = ["ImageDataModule", "ImageOptions"]


class ImageDataModule(IdentifiedData, LightningDataModule):
    """Base class of the datamodules, with an order that depends on (seed, epoch) alone.

    The augmentation of a sample depends on (seed, epoch, sample) alone. A subclass sets the class
    attributes below and implements :meth:`dataset` and :meth:`labels`. With ``defaults``, the
    defaults of the options that its constructor passes on, ``help()`` and Lightning's command line
    list these options. Loaders yield
    :class:`se_lightning.data.transforms.on_device.ImageBatch`, which unpacks to images and labels.

    Args:
        batch_size: Samples per device in training, at least 2.
        eval_batch_size: Maximum samples per device in validation and test.
        num_workers: Worker processes per rank; None shares the cores among the ranks, up to 8 each.
        drop_last: Leave out a last training batch of less than ``batch_size``.
        pin_memory: Copy batches to page-locked memory; None does it when training on a GPU. Images
            that are already on the GPU are not copied.
        seed: Seed of the training order and the augmentation.
        rotation: Maximum rotation, degrees.
        pixel_jitter: Maximum change of each pixel and channel, of 255.
        color_jitter: Strength of brightness, contrast and saturation; or a list of four, with hue.
        rand_augment: Magnitude (0 to 30) of the two operations of RandAugment; None to disable.
        trivial_augment: Apply one random operation of random strength.
        random_erasing: Probability that a box of an image is erased.
        cutout: Side of the square erased from every image, pixels.
        mixup: Alpha; 0 for none.
        cutmix: Alpha; 0 for none. With both, each batch gets one of them at random.
        repeats: Copies of a sample in an epoch, each augmented differently.

    Raises:
        ValueError: If an option is out of its range.
    """

    image_size: int
    in_channels: int = 3
    mean: float | Sequence[float]
    std: float | Sequence[float]
    class_names: Sequence[str]
    defaults: ClassVar[ImageOptions]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "defaults" in vars(cls):
            cls.__new__ = constructor_of(cls, cls.defaults)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        num_workers: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | None = None,
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
        positive_integer("eval_batch_size", eval_batch_size)
        boolean("drop_last", drop_last)
        if pin_memory is not None:
            boolean("pin_memory", pin_memory)
        # One call serves the subclasses too: it collects the arguments of all constructors.
        self.save_hyperparameters()
        for name, value in self.hparams.items():
            self.hparams[name] = plain(value)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.pin_memory = pin_memory
        self.seed = seed
        self.repeats = repeats
        self._counter = EpochCounter()
        self._begin = (0, 0)
        self._resumed: Trainer | None = None  # the trainer that loaded a checkpoint
        self._fingerprints: dict[str, dict[str, Any]] = {}
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

    def __setattr__(self, name: str, value: Any) -> None:  # a Trainer attaches itself at once
        if name == "trainer":
            check_trainer(self, value)
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:  # another package's Trainer takes it for a loader
        raise MisconfigurationException(not_a_loader(self))

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def dataset(self, split: str, *, augmented: bool) -> Dataset:
        """Return the split ``train``, ``val`` or ``test``; its item at (epoch, keys) is a batch."""
        raise TypeError(f"{type(self).__name__} must define `dataset`.")

    @staticmethod
    def splits_of(stage: str | None) -> tuple[str, ...]:
        """Return the splits that a stage of Lightning uses; all of them for None."""
        used = {"fit": ("train", "val"), "validate": ("val",)}
        used |= dict.fromkeys(("test", "predict"), ("test",))
        return used.get(stage or "", ("train", "val", "test"))

    def finish(self, *, augmented: bool) -> Finish:
        """Return the step that turns bytes into the network's input."""
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
        """Return the training loader, starting at any batch.

        Args:
            epoch: First epoch; None for the trainer's, or its checkpoint's. Outside a trainer,
                None is the one after the last epoch that any training loader has begun.
            batch: First batch of that epoch.

        Raises:
            ValueError: If the epoch has fewer batches.
        """
        dataset = self._dataset("train", augmented=True)
        order = TrainSampler(
            len(dataset),
            self.batch_size,
            seed=self.seed,
            repeats=self.repeats,
            drop_last=self.drop_last,
            counter=self._counter,
            **self._ranks(),
        )
        trainer = self.trainer
        if epoch is None and trainer is not None and is_running(trainer):
            epoch = trainer.current_epoch
            # Lightning also asks before it has restored its epoch, for the schedule's length.
            if self._resumed is trainer and self._begin[0] >= epoch:
                epoch, batch = self._begin
        if epoch is not None or batch:
            order.start_at(self._counter.next if epoch is None else epoch, batch)
        return self._loader(dataset, order, self.batch_size)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing in evaluation.

        The size of an image in pixels, its channels, and the mean and standard deviation of each
        channel, in [0, 1].
        """
        finish = self.finish(augmented=False)
        return {
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "mean": list(finish.mean),
            "std": list(finish.std),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the identity and preprocessing of the data, and in training the next batch."""
        splits = {split: self._fingerprint(split) for split in self._splits_found()}
        names = list(map(str, self.class_names)) if splits else []
        state: dict[str, Any] = {
            "data": {"class_names": names, "splits": splits},
            "preprocessing": self.preprocessing,
        }
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return state
        epoch, batch = next_batch(self.trainer)
        return state | {"epoch": epoch, "batch": batch, **self._shares()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the next training loader at the checkpoint's next batch.

        Raises:
            ValueError: If the state is damaged.
            MisconfigurationException: If the classes differ; or, in training, the images, or
                within an epoch the batch or world size.
        """
        trains = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        self.expect(
            state_dict,
            strict=trains,
            remedy="Restore the files, or start a new run from its weights (model.weights=).",
        )
        if "epoch" not in state_dict:  # it was not saved in training
            return
        require_same_shares(state_dict, **self._shares())
        self._begin, self._resumed = (state_dict["epoch"], state_dict["batch"]), self.trainer
        # Lightning does not know that the loader resumes within the epoch.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")

    def _shares(self) -> dict[str, int]:
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return {"world_size": world_size, "batch_size": self.batch_size}

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:  # noqa: D102
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the batches of the test split."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader:
        """Return the batches of ``train``, ``val`` or ``test``, in order, without augmentation."""
        dataset = self._dataset(split, augmented=False)
        order = EvalSampler(len(dataset), **self._ranks())
        return self._loader(dataset, order, self.eval_batch_size)

    def _dataset(self, split: str, *, augmented: bool) -> ImageDataset:
        return batches_of(self.dataset(split, augmented=augmented), augmented=augmented)

    def _loader(
        self, dataset: ImageDataset, order: TrainSampler | EvalSampler, batch_size: int
    ) -> DataLoader:
        return Loader(dataset, **self._options(order, batch_size))

    def _options(self, order: TrainSampler | EvalSampler, batch_size: int) -> dict[str, Any]:
        workers = self._workers()
        return {
            "sampler": OneEpoch(order) if getattr(self.trainer, "overfit_batches", 0) else order,
            "batch_size": batch_size,
            "drop_last": isinstance(order, TrainSampler) and self.drop_last,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._pins(),
            "find_ranks": self.trainer is None,
        }

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        ranks = 1 if self.trainer is None else self.trainer.num_devices
        return min(8, max(1, cores() // ranks))

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _pins(self) -> bool:
        return self._on_gpu() if self.pin_memory is None else self.pin_memory

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}
