"""Base class of all networks: from images to a feature map, and from there to logits."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from se_lightning.arguments import fraction, natural_number, one_of, positive_integer
from se_lightning.models.layers.feature_info import FeatureInfo, FeatureMap
from se_lightning.models.layers.find import warn_of_single_units
from se_lightning.models.layers.gate_base import start_at_one
from se_lightning.models.layers.gradient_checkpointing import run, run_checkpointed
from se_lightning.models.layers.head import POOLS, GlobalPool
from se_lightning.models.layers.image_check import check_images
from se_lightning.models.layers.init import INITS
from se_lightning.models.layers.options import Excitation, GateOptions, HeadOptions
from se_lightning.models.layers.scripting import traced
from se_lightning.models.layers.signature import with_checked_options
from se_lightning.models.layers.strided import slice_strided
from se_lightning.models.layers.timm_config import layer_groups, pretrained_cfg

__all__ = ["ImageNetwork"]

fx.wrap("check_images")  # a leaf: torch.fx cannot trace sizes


class ImageNetwork(nn.Module):
    """Base class of networks from images to logits, with the methods of timm's networks.

    The constructor of a family calls ``_step`` for each feature map, sets pool and classifier to
    those of ``_head``, and finally calls ``_finish``. ``feature_info`` lists the maps: the stem's,
    and the last of each stage. The children stand in the order in which the images pass them; the
    last two are the pool and the classifier.

    Args:
        num_classes: Number of classes K; 0 for a network that returns pooled features.
        in_channels: Number of image channels.
        min_size: Side of the smallest image that leaves a feature map, in pixels.
        dropout: Dropout rate before the classifier.
        image_size: Side that the images must have, in pixels; None for any.

    Raises:
        ValueError: If a number of classes is negative, a number of channels is not positive, or
            `dropout` is not in [0, 1).
    """

    family: ClassVar[str]  # name for messages
    placements: ClassVar[Sequence[str]] = ()  # places for gates in a residual unit
    gate_defaults: ClassVar[GateOptions] = {}  # those that differ from Excitation's
    pools: ClassVar[Sequence[str]] = POOLS  # kinds of pools before the classifier, default first
    classifier_name = "fc"
    init = "fan_out"
    native_size = 224  # side of the images that the network was designed for
    native_map: int | None = None  # side of their last map, where layers have no padding

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            with_checked_options(cls)

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        min_size: int = 1,
        dropout: float = 0.0,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        natural_number("num_classes", num_classes)
        positive_integer("in_channels", in_channels)
        fraction("dropout", dropout)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.min_size = min_size
        self.image_size = image_size
        self.dropout = dropout
        self.feature_info = FeatureInfo()
        self.steps: list[tuple[str, ...]] = []
        self._backbone: list[str] = []  # children that lead to the last feature map
        self.grad_checkpointing = False
        # Options that change the outputs but no parameter's shape.
        self.variant: dict[str, Any] = {}

    def _excitations(self, gates: Mapping[str, Any], stages: int | None = None) -> list[Excitation]:
        """Check the gates' options; return one set per stage, or a single one without stages."""
        gates = {n: value for n, value in gates.items() if n not in HeadOptions.__annotations__}
        return Excitation.of_stages(
            self.family, gates, stages=stages, placements=self.placements, **self.gate_defaults
        )

    def _step(self, *modules: str, channels: int, reduction: int) -> None:
        """Add the modules that lead to the next feature map."""
        self.steps.append(modules)
        children = (path.partition(".")[0] for path in modules)
        self._backbone = list(dict.fromkeys([*self._backbone, *children]))
        self.feature_info.append(FeatureMap(modules[-1], channels, reduction))

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.feature_info[-1].channels

    @property
    def reduction(self) -> int:
        """Stride of the last feature map."""
        return self.feature_info[-1].reduction

    @property
    def head_hidden_size(self) -> int:
        """Number of features that the classifier reads."""
        return self.num_features

    def _advance(self, step: Sequence[str], x: Tensor) -> Tensor:
        """Run the modules from one feature map to the next."""
        modules = [self.get_submodule(path) for path in step]
        if self.grad_checkpointing and self.training:
            return run_checkpointed(modules, x)
        return run(modules, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (N, num_features, about H / reduction, W / reduction)."""
        check_images(x, self.in_channels, self.min_size, self.image_size)
        if self.grad_checkpointing and self.training:
            for step in self.steps:
                x = self._advance(step, x)
            return x
        # Whole children, so that their hooks see the images pass.
        return run([getattr(self, child) for child in self._backbone], x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the last feature map, and maps of ``feature_info``, for dense tasks.

        Args:
            x: Images, (N, in_channels, H, W).
            indices: Indices of ``feature_info``; an integer n selects the last n, None all. Maps
                are returned in this order.
            norm: For timm's callers; the last map is always that of ``forward_features``, after
                the last norm, and the others are read by layers without one.
            stop_early: Whether to stop at the last selected map, and return that one first.
            output_fmt: Only ``"NCHW"``, as in timm's convolutional networks.
            intermediates_only: Whether to return the list of maps alone.

        Raises:
            ValueError: If an index is out of range, or the format is another one.

        Example:
            >>> import torch
            >>> from se_lightning.models import se_resnet18
            >>> network = se_resnet18()
            >>> last, maps = network.forward_intermediates(torch.zeros(1, 3, 64, 64), indices=2)
            >>> network.feature_info[-2], maps[0].shape
            (FeatureMap(module='layer3', channels=256, reduction=16), torch.Size([1, 256, 4, 4]))
        """
        if output_fmt != "NCHW":
            raise ValueError(
                f"`output_fmt` (={output_fmt!r}) must be 'NCHW'; permute the maps afterwards."
            )
        chosen = self.feature_info.select(indices)
        check_images(x, self.in_channels, self.min_size, self.image_size)
        maps = []
        for step in self.steps[: max(chosen) + 1] if stop_early else self.steps:
            x = self._advance(step, x)
            maps.append(x)
        selected = [maps[index] for index in chosen]
        return selected if intermediates_only else (x, selected)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing of each unit on or off.

        Gradients and running statistics stay the same. Only the input of each unit is stored; a
        training step of SE-ResNet-50 takes 1.2 times as long on a CPU.
        """
        self.grad_checkpointing = enable

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or pooled features (N, head_hidden_size); without pool, the map."""
        x = self.global_pool(x)
        if not self.pool_type:
            return x
        x = x.flatten(1)
        return x if pre_logits else self.get_submodule(self.classifier_name)(x)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.forward_head(self.forward_features(x))

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, an identity if there are 0 classes, or its path."""
        name = self.classifier_name
        return name if name_only else self.get_submodule(name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Number of classes; with 0, the network returns pooled features.
            global_pool: Kind of pool; None keeps it. ``""`` needs 0 classes: the network then
                returns the last feature map.

        Raises:
            ValueError: If an argument is refused; the network is then unchanged.
        """
        kind = self.pool_type if global_pool is None else global_pool
        pool, classifier = self._head(num_classes, {"global_pool": kind})
        owner, _, name = self.classifier_name.rpartition(".")
        self.global_pool = pool.train(self.training)
        setattr(self.get_submodule(owner), name, classifier.train(self.training))

    def _head(
        self, num_classes: int, options: Mapping[str, Any], *, bias: bool = True
    ) -> tuple[nn.Module, nn.Module]:
        """Return the pool and the classifier.

        Args:
            num_classes: Number of classes K, or 0.
            options: Options of the network, of which ``global_pool`` is read.
            bias: Whether the classifier has a bias.

        Raises:
            ValueError: If the number or the pool is refused.
        """
        kind = options.get("global_pool", self.pools[0])
        natural_number("num_classes", num_classes)
        one_of("global_pool", kind, self.pools)
        self.init = options.get("init", self.init)
        one_of("init", self.init, INITS)
        if num_classes and not kind:
            raise ValueError(
                f"`global_pool` (='') must be one of {', '.join(filter(None, self.pools))}: the "
                f"classifier of {num_classes} classes needs pooled features."
            )
        self.num_classes, self.pool_type = num_classes, kind
        return self._pool(kind), self._classifier(self.head_hidden_size, num_classes, bias)

    def _pool(self, kind: str) -> nn.Module:
        return GlobalPool(kind, self.dropout)

    def _classifier(self, features: int, num_classes: int, bias: bool = True) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(features, num_classes, bias, device=like.device, dtype=like.dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what ``torch.jit.script`` compiles; as in timm, it does not checkpoint."""
        enabled, self.grad_checkpointing = self.grad_checkpointing, False
        try:
            return traced(self)
        finally:
            self.grad_checkpointing = enabled

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as ``pretrained_cfg``, under timm's older name."""
        return self.pretrained_cfg

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions of parameter names, in the order of depth, for timm.

        ``timm.optim.create_optimizer_v2(network, layer_decay=0.75)`` groups parameters by them:
        the stem, then each unit, or with ``coarse`` each stage. The rest is the classifier.
        """
        return layer_groups(self, coarse)

    def no_weight_decay(self) -> set[str]:
        """Return the names of weights without weight decay; timm excludes vectors by itself."""
        return set()

    def _finish(self) -> None:
        """Initialize the weights, and check the gates."""
        INITS[self.init](self)
        start_at_one(self)
        slice_strided(self)
        self.pretrained_cfg = pretrained_cfg(self)
        warn_of_single_units(self)
