"""Taps on the gates of a model: what they put out, batch by batch."""

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
    # Traced by torch.compile like the network itself. One function for all modules, which finds
    # the list through its module: blocks that share compiled code keep apart, and the list, unlike
    # the hook, is guarded, so that code compiled without recording is not used with it.
    if module._tapped is not None:
        module._tapped.append(output.detach())


def _record_input(module: Any, inputs: tuple[Tensor, ...]) -> None:
    if module._tapped is not None:
        module._tapped.append(inputs[0].detach())


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they are written: hooks set after a compilation fire too."""
    with torch.compiler.set_stance("force_eager"):
        yield


def profile(values: Tensor, channels: int) -> Tensor:
    """Return a gate's (or hidden layer's) value per sample and channel, its mean over space.

    Args:
        values: (N, C, H, W), (N, C, 1, 1), (N, 1, 1, C) or (N, C).
        channels: C.

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
    """Hooks on every gate of a model that keep its output while recording.

    The last taps on a model count; earlier ones see nothing any more. Set them before the first
    compiled call. Where the model was compiled before, what is compiled
    is dropped, so that the next call compiles the hooks in.

    Args:
        model: any, with gates of this package, timm or torchvision.
        hidden: keep the hidden units' activations too.

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
        # What enters the last layer is what the hidden units put out.
        self._expansions: list[Any] = [
            parts.expand if width else None
            for parts, width in zip(self.excitations.values(), self.hidden, strict=True)
        ]
        self.remove()  # of taps that an exception has left there
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
        """Between which the gates can be; of those without an upper end (ReLU), 2."""
        known: dict[type[nn.Module], tuple[float, float]] = {
            nn.Tanh: (-1.0, 1.0),
            DoubleSigmoid: (0.0, 2.0),
            nn.ReLU: (0.0, 2.0),
        }
        ends = {known.get(type(gate), (0.0, 1.0)) for gate in self._gates} or {(0.0, 1.0)}
        return min(low for low, _ in ends), max(high for _, high in ends)

    def record(self) -> None:
        """Keep what the gates put out from now on."""
        for module in self._tapped():
            module._tapped = []

    def take(self) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return what was recorded, by layer and call, of gates and of hidden units; go on."""
        gates, hidden = (
            [getattr(module, "_tapped", None) or [] for module in modules]
            for modules in (self._gates, self._expansions)
        )
        for module in self._tapped():
            if getattr(module, "_tapped", None) is not None:
                module._tapped = []
        return gates, hidden

    def pause(self) -> None:
        """Record no more; what was not taken is forgotten."""
        for module in self._tapped():
            module._tapped = None

    def remove(self) -> None:
        """Take the hooks away, also those of other taps on these gates."""
        for parts in self.excitations.values():
            for module, hooks, ours in (
                (parts.gate, parts.gate._forward_hooks, _record_output),
                (parts.expand, parts.expand._forward_pre_hooks, _record_input),
            ):
                for key in [key for key, hook in hooks.items() if hook is ours]:
                    del hooks[key]
                vars(module).pop("_tapped", None)

    def _tapped(self) -> list[Any]:
        return [module for module in self._gates + self._expansions if module is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def _is_compiled(model: nn.Module) -> bool:
    return getattr(model, "_compiler_ctx", None) is not None or any(  # Lightning's, of a module
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )
