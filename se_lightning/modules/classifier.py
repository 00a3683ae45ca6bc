"""Training logic for image classification with any backbone."""

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from se_lightning.lightning import (
    MisconfigurationException,
    OptimizerLRScheduler,
    TrainerFn,
    is_lightnings,
    rank_zero_info,
    warn_of_both,
)
from se_lightning.models.layers.gradient_checkpointing import checkpoint_gradients
from se_lightning.models.layers.head import count_classes
from se_lightning.models.layers.strided import slice_strided
from se_lightning.models.surgery.folded import folded, repeat_folds
from se_lightning.models.surgery.insert import restore_hooks
from se_lightning.models.weights.structure import structure
from se_lightning.modules import freezing
from se_lightning.modules.check_data import check_data
from se_lightning.modules.compiled import is_compiled, keys_of, plain, rename
from se_lightning.modules.example import example_images
from se_lightning.modules.initial_weights import load_initial_weights, warn_of_other_normalization
from se_lightning.modules.metrics import MixedAccuracy, accuracy, evaluation
from se_lightning.modules.optim import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
    parameter_groups,
    scale_rates,
    scheduled,
)
from se_lightning.modules.rate import set_rate
from se_lightning.modules.reloading import explained, with_own_classifier
from se_lightning.modules.steps import ClassificationSteps

__all__ = ["TRAINING_OPTIONS", "ImageClassifier"]

# Arguments that a checkpoint makes unnecessary or cannot contain.
NOT_SAVED = ("backbone", "optimizer", "lr_scheduler", "weights", "use_ema")


class ImageClassifier(ClassificationSteps):
    """Cross-entropy training, with top-1 and (for more than 5 classes) top-5 accuracy.

    Logs ``train/loss`` per step, and ``train/acc1``, ``val/loss``, ``val/acc1``, ``val/acc5``,
    ``test/...`` per epoch; accuracies are micro-averaged fractions over all samples of all ranks.

    Args:
        backbone: Network from (N, C, H, W) images to (N, K) logits. In training it may return a
            tuple of its logits and those of auxiliary classifiers, whose losses have weight 0.4.
            Not a hyper-parameter: pass it to ``load_from_checkpoint`` again.
        num_classes: Number of classes K. 1 stands for one logit, which tells class 1 from class 0:
            training is by binary cross-entropy, and probabilities are its sigmoid.
        label_smoothing: Fraction of the target spread over all classes, in training only.
        decay_norm_bias: Whether weight decay applies to biases and norms.
        channels_last: Use the channels-last memory format for images, and so for all activations,
            which suits tensor cores; on a CPU with AVX-512, training steps of seven networks took
            1.07 to 1.19 times as long without it. Parameters stay contiguous. The default is False
            here, as another backbone may need contiguous images, and True for the other modules.
        grad_checkpointing: Recompute each unit for its gradients instead of storing its
            activations: less memory, more time.
        weights: Initial weights: a file of published weights, a name on the Hugging Face hub, a
            checkpoint of this package, or a state dict; see
            :func:`se_lightning.models.load_weights`. Not saved.
        use_ema: Load the averaged instead of the raw weights from a file that has both. Not saved.
        freeze: Part that is not trained: ``"backbone"`` (all but the classifier), ``"norms"`` or
            ``"all_but_gates"``; batch norms then keep their statistics.
        layer_decay: Factor of the learning rate from each layer to the one below it, above 0 and
            at most 1; see :func:`se_lightning.modules.optim.parameter_groups`.
        optimizer: Function from parameters to an optimizer, e.g.
            ``partial(torch.optim.AdamW, lr=1e-3)``. None means SGD with Nesterov momentum 0.9,
            learning rate 0.1 and weight decay 1e-4. Not saved.
        lr_scheduler: Function from an optimizer to a scheduler. If it takes ``total_steps`` (as in
            :mod:`se_lightning.modules.optim`, ``OneCycleLR``), it gets the length of the run and
            advances per step, otherwise per epoch. None keeps the rate constant. Not saved.

    Attributes:
        num_classes: Number of classes; 2 for one logit.
        lr: Learning rate instead of that of ``optimizer``; None, the default, keeps the latter.
            Lightning's ``Tuner.lr_find`` and ``LearningRateFinder`` set it.

    Raises:
        ValueError: If a number is out of range, a name is unknown, the weights cannot be loaded,
            or ``freeze`` leaves nothing to train.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> ImageClassifier(net, num_classes=3)(torch.zeros(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        decay_norm_bias: bool = True,
        channels_last: bool = False,
        grad_checkpointing: bool = False,
        weights: str | Mapping[str, Tensor] | None = None,
        use_ema: bool = True,
        freeze: str | None = None,
        layer_decay: float | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        warn_of_both(self)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` (={num_classes!r}) must be a whole number above 0.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` (={label_smoothing!r}) must be in [0, 1).")
        self._initial = load_initial_weights(backbone, weights, use_ema=use_ema, freeze=freeze)
        if freeze is not None:
            freezing.freeze(backbone, freeze)
        if layer_decay is not None:
            parameter_groups(backbone, layer_decay=layer_decay)  # checks the argument
        if grad_checkpointing:
            checkpoint_gradients(backbone)
        if sliced := slice_strided(backbone):
            rank_zero_info("Convolutions that slice their input: %s", ", ".join(sliced))
        # This includes the constructor arguments of subclasses.
        self.save_hyperparameters(ignore=NOT_SAVED)
        self.backbone = backbone
        self.channels_last = channels_last
        self.num_classes = classes = count_classes(num_classes)
        self.label_smoothing = label_smoothing
        self.decay_norm_bias = decay_norm_bias
        self.frozen = freeze
        self.layer_decay = layer_decay
        self.lr: float | None = None
        self._applied_lr: float | None = None
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.train_acc1 = accuracy(classes, 1)
        self.train_acc1_mixed = MixedAccuracy()
        self.val_metrics = evaluation(classes, "val")
        self.test_metrics = evaluation(classes, "test")

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.frozen is not None:
            freezing.hold_statistics(self.backbone)
        return self

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.backbone(x)

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, if the datamodule describes it."""
        data = getattr(self.trainer, "datamodule", None)
        check_data(self.backbone, self.num_classes, data, trains=stage == "fit")
        warn_of_other_normalization(self._initial, data)
        self._initial = None  # training adapts the network to its data
        if any(is_lightnings(each, "BaseFinetuning") for each in self.trainer.callbacks):  # type: ignore[attr-defined]
            freezing.spare_classifier(plain(self.backbone))

    @property
    def example_input_array(self) -> Any:
        """An image for ModelSummary, graphs and ``to_onnx``, unless it is set; None if unknown."""
        own, network = type(self).forward is ImageClassifier.forward, self.backbone
        if self._example_input_array is not None or not own or is_compiled(network):
            return self._example_input_array
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        return example_images(network, data, self.hparams.get("in_channels"))

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        self._example_input_array = example

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state with the names of the network before ``torch.compile``."""
        state = super().state_dict(*args, **kwargs)
        rename(state)
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state, compiled or not; unless strict, without a classifier of another size."""
        state_dict = state_dict if strict else with_own_classifier(state_dict, self)
        return super().load_state_dict(keys_of(super().state_dict(), state_dict), strict, assign)

    def on_train_start(self) -> None:
        """Restore the hooks that Lightning's setup removes, and the mode of frozen batch norms.

        Before this hook, Lightning would warn about modules in evaluation mode.
        """
        if self.lr != self._applied_lr and not self.trainer.global_step:
            # Lightning's LearningRateFinder sets it after the schedulers have been built.
            configs = self.trainer.lr_scheduler_configs
            scheduler = configs[0].scheduler if configs else None
            set_rate(self.trainer.optimizers[0], self.lr, scheduler)
        restore_hooks(self.backbone)
        if self.frozen is not None:
            freezing.hold_statistics(self.backbone)

    def configure_optimizers(self) -> OptimizerLRScheduler:  # noqa: D102
        strategy = None if self._trainer is None else self.trainer.strategy
        if not self.decay_norm_bias and is_lightnings(strategy, "FSDPStrategy"):
            raise MisconfigurationException(
                "FSDP flattens the weights, so norms and biases cannot be identified: leave "
                "`decay_norm_bias` true, or use trainer.strategy=ddp."
            )
        groups = parameter_groups(
            self.backbone, decay_norm_bias=self.decay_norm_bias, layer_decay=self.layer_decay
        )
        optimizer = (self.optimizer or default_optimizer)(groups)
        scale_rates(optimizer)
        set_rate(optimizer, self.lr)
        self._applied_lr = self.lr
        if self.lr_scheduler is None:
            return optimizer
        return scheduled(optimizer, self.lr_scheduler, self.trainer)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Self:
        """Rebuild the module, with ``options`` in place of the checkpoint's if they fit."""
        with explained(cls, checkpoint_path, options):
            return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record class names and structure, so that the file suffices to rebuild model and data."""
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        for name in saved.keys() - self.hparams_initial.keys():  # added by a callback
            del saved[name]
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["se_lightning"] = {
            "module": type(self).__name__,
            "datamodule": None if data is None else type(data).__name__,
            "structure": structure(plain(self.backbone)),
            "folded": folded(plain(self.backbone)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fold the gates that were folded in the saved network."""
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if fitting and "optimizer_states" not in checkpoint:
            raise MisconfigurationException(
                "This checkpoint has no optimizer state (task=fold writes none), so no run can "
                "resume from it: load the model with load_from_checkpoint and fit that."
            )
        repeat_folds(plain(self.backbone), checkpoint.get("se_lightning", {}).get("folded", {}))


# The arguments that the module of each family also takes.
TRAINING_OPTIONS = tuple(inspect.signature(ImageClassifier).parameters)[2:]
