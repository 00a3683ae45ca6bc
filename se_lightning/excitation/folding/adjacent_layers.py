"""Layers whose weights can absorb a constant scale of channels."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from se_lightning.models import find_excitations
from se_lightning.models.surgery.folded import ChannelScale

__all__ = ["Neighbours", "Place"]

log = logging.getLogger(__name__)

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# Modules that commute with a scale per channel; the homogeneous ones need a scale of at least 0.
_LINEAR = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelScale)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AdaptiveMaxPool2d)
_LINEAR_CALLS = {F.dropout, F.avg_pool2d, F.adaptive_avg_pool2d, "mean", "contiguous"}
_HOMOGENEOUS_CALLS = {F.relu, torch.relu, F.max_pool2d, torch.max_pool2d, "relu", "relu_"}
_FLATTEN = {torch.flatten, "flatten"}


class Place(NamedTuple):
    """A layer that can absorb (part of) the constant, and the function that does it."""

    path: str
    absorb: Callable[[], None]


class Neighbours:
    """The layers around each gate of a network, found in a symbolic trace.

    Args:
        model: Network to trace. If it cannot be traced, no gate has neighbours.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.nodes: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()
        try:
            graph = _Tracer(model).trace(model)
        except Exception as error:  # a network's own code may raise anything on a proxy
            log.info(
                "%s cannot be traced (%s); constant gates other than 1 are kept as scales.",
                type(model).__name__,
                str(error).partition("\n")[0],
            )
            return
        for node in graph.nodes:
            if node.op == "call_module":
                self.nodes[node.target] = node
                self.calls[node.target] += 1

    def of(self, path: str, scale: Tensor) -> list[Place]:
        """Return the layers that together absorb a gate's constant; empty if that is impossible.

        Args:
            path: Path of the gate.
            scale: The constant, (C,).
        """
        positive = bool((scale >= 0).all())
        if path in self.nodes and self.calls[path] == 1:
            node = self.nodes[path]
            makers = self._before(node.args[0], positive)
            places = makers and self._split(makers, scale)
            return places or self._after(node, scale, positive) or []
        # A gate of add_excitation is a hook on a layer, which the trace does not enter.
        place = path.removesuffix(".nchw").rpartition(".")[0]
        if path not in self.nodes and place in self.nodes and hasattr(self._module(path), "folded"):
            makers = self._makers(self.nodes[place], positive)
            return (makers and self._split(makers, scale)) or []
        return []

    def _module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def _alone(self, node: Any) -> bool:
        """Return whether a layer runs once and has no hooks other than a folded gate."""
        module: Any = self._module(node.target)
        free = hasattr(getattr(module, "se", None), "folded") or not module._forward_hooks
        return self.calls[node.target] == 1 and free and not module._forward_pre_hooks

    def _before(self, node: Any, positive: bool) -> list[nn.Module] | None:
        """Return the layers that produce a value that is used once, in channel order."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return None
        return self._makers(node, positive)

    def _makers(self, node: fx.Node, positive: bool) -> list[nn.Module] | None:
        if node.op == "call_module" and self._alone(node):
            module = self._module(node.target)  # type: ignore[arg-type]
            if type(module) is nn.Conv2d or (type(module) in _NORMS and module.affine):
                return [module]
        if self._passes(node, positive):
            return self._before(node.args[0], positive)
        if node.target is torch.cat and (*node.args, *node.kwargs.values())[1:] == (1,):
            parts = [self._before(part, positive) for part in node.args[0]]  # type: ignore[union-attr]
            if all(part is not None for part in parts):
                return [maker for part in parts for maker in part or ()]
        return None

    def _split(self, makers: Sequence[Any], scale: Tensor) -> list[Place] | None:
        """Assign each layer its part of the constant."""
        widths = [m.weight.shape[0] for m in makers]
        if sum(widths) != len(scale) or len({id(maker) for maker in makers}) < len(makers):
            return None
        names = {id(module): path for path, module in self.model.named_modules()}
        pairs = zip(makers, scale.split(widths), strict=True)
        return [Place(names[id(m)], _taker(_scale_output, m, part)) for m, part in pairs]

    def _after(
        self, node: fx.Node, scale: Tensor, positive: bool, flat: bool = False
    ) -> list[Place] | None:
        """Return the layers that read a value, if all of them can absorb the constant."""
        found: list[Place] = []
        for user in node.users:
            more = self._reader(user, node, scale, positive, flat)
            if more is None:
                return None
            found += more
        return found or None

    def _reader(
        self, user: fx.Node, node: fx.Node, scale: Tensor, positive: bool, flat: bool
    ) -> list[Place] | None:
        if user.args[:1] != (node,) or node in user.args[1:] or node in user.kwargs.values():
            return None
        if user.op == "call_module" and self._alone(user):
            path: str = user.target  # type: ignore[assignment]
            module: Any = self._module(path)
            if type(module) is nn.Conv2d and module.in_channels == len(scale):
                return [Place(path, _taker(_scale_input, module, scale))]
            if type(module) is nn.Linear and flat and module.in_features % len(scale) == 0:
                each = scale.repeat_interleave(module.in_features // len(scale))
                return [Place(path, _taker(_scale_input, module, each))]
            if type(module) in _NORMS and _fits_norm(module, scale):
                return [Place(path, _taker(_scale_norms_input, module, scale))]
        if self._flattens(user):
            return self._after(user, scale, positive, flat=True)
        if self._passes(user, positive):
            flat = flat or (user.target == "mean" and not _keeps(user))
            return self._after(user, scale, positive, flat)
        return None

    def _passes(self, node: fx.Node, positive: bool) -> bool:
        """Return whether a node commutes with a scale of the channels."""
        if node.op == "call_module":
            kinds = _LINEAR + (_HOMOGENEOUS if positive else ())
            return type(self._module(node.target)) in kinds and self._alone(node)  # type: ignore[arg-type]
        if node.op not in ("call_function", "call_method"):
            return False
        if node.target == "mean":
            over = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
            return over in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
        return node.target in _LINEAR_CALLS | (_HOMOGENEOUS_CALLS if positive else set())

    def _flattens(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._module(node.target)  # type: ignore[arg-type]
            return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        given = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
        return node.target in _FLATTEN and given in (
            {"start_dim": 1},
            {"start_dim": 1, "end_dim": -1},
        )


def _keeps(node: fx.Node) -> bool:
    """Return whether a mean keeps the reduced dimensions."""
    return bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))


class _Tracer(fx.Tracer):
    """Tracer that treats gates and norms as leaves, since subclasses may override their forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._gates = {id(parts.module) for parts in find_excitations(model).values()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = (nn.modules.batchnorm._BatchNorm, ChannelScale)
        if id(m) in self._gates or isinstance(m, whole):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _taker(take: Callable[[Any, Tensor], None], module: Any, scale: Tensor) -> Callable[[], None]:
    def done() -> None:
        with torch.no_grad():
            take(module, scale.to(module.weight.device))

    return done


def _times(parameter: Tensor, factor: Tensor) -> None:
    parameter.copy_(parameter.double().cpu() * factor.double().cpu())


def _scale_output(module: Any, scale: Tensor) -> None:
    _times(module.weight, scale.view(-1, *[1] * (module.weight.ndim - 1)))
    if module.bias is not None:
        _times(module.bias, scale)


def _scale_input(module: Any, scale: Tensor) -> None:
    if isinstance(module, nn.Linear):
        _times(module.weight, scale)
        return
    # (groups, outputs per group, channels per group, H, W)
    parts = scale.view(module.groups, 1, -1, 1, 1)
    _times(module.weight.unflatten(0, (module.groups, -1)), parts)


def _fits_norm(norm: Any, scale: Tensor) -> bool:
    if norm.running_mean is None or norm.num_features != len(scale) or not norm.affine:
        return False
    return bool(scale.abs().min() > 1e-3) and bool((_variance(norm, scale) >= 0).all())


def _variance(norm: Any, scale: Tensor) -> Tensor:
    return (norm.running_var.double().cpu() + norm.eps) / scale.cpu().square() - norm.eps


def _scale_norms_input(norm: Any, scale: Tensor) -> None:
    # Scale the statistics rather than the weight, so that further training, which normalizes by
    # batch statistics, continues from the same function.
    scale = scale.cpu()
    norm.running_var.copy_(_variance(norm, scale))
    norm.running_mean.copy_(norm.running_mean.double().cpu() / scale)
    _times(norm.weight, scale.sign())
