"""Taps: hooks that record the outputs of a model's gates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from se_lightning.models import DoubleSigmoid, ExcitationParts, find_excitations

__all__ = ["Taps", "eager", "per_sample", "profile", "require_gates"]


def require_gates(model: nn.Module) -> dict[str, ExcitationParts]:
    """Return the squeeze-and-excitation modules of a model by path.

    Raises:
        ValueError: If the model has none.
    """
    found = find_excitations(model)
    if not found:
        raise ValueError(
            f"`model` (={type(model).__name__}) has no squeeze-and-excitation gates; "
            "se_lightning.models.add_excitation adds them to any network."
        )
    return found


def _record_output(module: Any, inputs: Any, output: Tensor) -> None:
    # torch.compile traces this with the network. The list is an attribute of the module rather
    # than of the hook, so that blocks sharing compiled code have separate lists, and so that
    # Dynamo guards on it: code compiled without recording is not reused while recording.
    if module._tapped is not None:
        module._tapped.append(output.detach())


def _record_input(module: Any, inputs: tuple[Tensor, ...]) -> None:
    if module._tapped is not None:
        module._tapped.append(inputs[0].detach())


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules uncompiled, so that hooks set after compilation are executed."""
    with torch.compiler.set_stance("force_eager"):
        yield


def profile(values: Tensor, channels: int) -> Tensor:
    """Return the values of a gate or hidden layer by sample and channel, averaged over space.

    Args:
        values: Activations, (N, C, H, W), (N, C, 1, 1), (N, 1, 1, C) or (N, C).
        channels: Number of channels, C.

    Shape:
        (N, C), float32 or wider.
    """
    if not values.dtype.is_floating_point or values.itemsize < 4:
        values = values.float()
    values = values.reshape(len(values), channels, -1)
    return values[..., 0] if values.shape[2] == 1 else values.mean(2)


def per_sample(calls: Sequence[Tensor], channels: int, size: int) -> Tensor:
    """Return the mean over space, over the rows of a sample (frames of a clip), and over calls.

    Shape:
        (size, channels)
    """
    means = [profile(call, channels) for call in calls]
    means = [each if len(each) == size else each.view(size, -1, channels).mean(1) for each in means]
    return means[0] if len(means) == 1 else torch.stack(means).mean(0)


class Taps:
    """Hooks on every gate of a model that keep its outputs while recording.

    Only the most recent taps on a model record. Set them before the first compiled call; otherwise
    the compiled code is discarded, and the next call compiles again with the hooks.

    Args:
        model: Model with gates of this package, timm or torchvision.
        hidden: Also record the activations of the hidden units.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> net = se_resnet20(ratio=4).eval()
        >>> with Taps(net) as taps:
        ...     taps.record()
        ...     _ = net(torch.zeros(2, 3, 32, 32))
        ...     gates, _ = taps.take()
        >>> len(gates), gates[0][0].shape
        (9, torch.Size([2, 16, 1, 1]))
    """

    def __init__(self, model: nn.Module, *, hidden: bool = False) -> None:
        self.excitations = find_excitations(model)
        self.layers = tuple(self.excitations)
        self.channels = tuple(parts.channels for parts in self.excitations.values())
        self.hidden = tuple(parts.hidden if hidden else 0 for parts in self.excitations.values())
        self._gates: list[Any] = [parts.gate for parts in self.excitations.values()]
        # The input of the last layer is the output of the hidden units.
        self._expansions: list[Any] = [
            parts.expand if width else None
            for parts, width in zip(self.excitations.values(), self.hidden, strict=True)
        ]
        self.remove()  # an exception may have left earlier taps
        for gate in self._gates:
            gate.register_forward_hook(_record_output)
        for layer in filter(None, self._expansions):
            layer.register_forward_pre_hook(_record_input)
        self.pause()
        self.recompiles = bool(self._gates) and _is_compiled(model)
        if self.recompiles:
            torch._dynamo.reset()

    @property
    def ends(self) -> tuple[float, float]:
        """Range of the gates; unbounded ones (ReLU) end at 2."""
        known: dict[type[nn.Module], tuple[float, float]] = {
            nn.Tanh: (-1.0, 1.0),
            DoubleSigmoid: (0.0, 2.0),
            nn.ReLU: (0.0, 2.0),
        }
        ends = {known.get(type(gate), (0.0, 1.0)) for gate in self._gates} or {(0.0, 1.0)}
        return min(low for low, _ in ends), max(high for _, high in ends)

    def record(self) -> None:
        """Start recording."""
        for module in self._tapped():
            module._tapped = []

    def take(self) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the recorded gates and hidden units by layer and call, and keep recording."""
        gates, hidden = (
            [getattr(module, "_tapped", None) or [] for module in modules]
            for modules in (self._gates, self._expansions)
        )
        for module in self._tapped():
            if getattr(module, "_tapped", None) is not None:
                module._tapped = []
        return gates, hidden

    def pause(self) -> None:
        """Stop recording and discard the values that were not taken."""
        for module in self._tapped():
            module._tapped = None

    def remove(self) -> None:
        """Remove the hooks, including those of other taps on these gates."""
        for parts in self.excitations.values():
            for module, hooks, tap in (
                (parts.gate, parts.gate._forward_hooks, _record_output),
                (parts.expand, parts.expand._forward_pre_hooks, _record_input),
            ):
                for key in [key for key, hook in hooks.items() if hook is tap]:
                    del hooks[key]
                vars(module).pop("_tapped", None)

    def _tapped(self) -> list[Any]:
        return [module for module in self._gates + self._expansions if module is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def _is_compiled(model: nn.Module) -> bool:
    return getattr(model, "_compiler_ctx", None) is not None or any(  # set by Lightning
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )
