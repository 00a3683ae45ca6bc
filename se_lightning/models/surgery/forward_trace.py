"""Tracing of one forward pass: module outputs, and the last norms of residual branches."""

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Probe", "example_of", "watch"]


class Tag(NamedTuple):
    """What the probe knows about a tensor computed from the image."""

    depth: int  # layers (convolutions, linear layers, norms) on the longest path from the image
    norm: str | None  # path of the last norm, None if there are several
    axis: int | None  # axis of the channels, None if an operation has hidden it


# The operations that count as layers, and the channel axis of their output. For norms, parts of the
# names, which differ between devices (native_, cudnn_, ...).
LAYERS = {"convolution": 1, "linear": -1, "addmm": -1, "mm": -1, "bmm": -1, "baddbmm": -1}
NORMS = ("batch_norm", "group_norm", "layer_norm", "rms_norm")


class Probe(TorchDispatchMode):
    """Records module outputs in a forward pass, and finds the last norms of residual branches.

    It follows tensors through operations and does not depend on the classes of blocks.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.running = [""]
        self.outputs: dict[str, list[Any]] = {}
        self.branches: dict[str, None] = {}  # an ordered set
        # Keeps the tensors alive, so that their memory is not reused by later ones.
        self.tags: dict[tuple, tuple[Tag, Tensor]] = {_key(image): (Tag(0, None, 1), image)}

    def enter(self, path: str, *_: Any) -> None:
        """Record that a module starts."""
        self.running.append(path)

    def leave(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Record that a module has returned, and its output."""
        self.running.pop()
        self.outputs.setdefault(path, []).append(output)

    def layout(self, path: str) -> tuple[int, list[int]]:
        """Return the channel axis and (H, W) of a module's 4-D output; axis 0 if it has none."""
        output = self.outputs.get(path, [None])[-1]
        if not isinstance(output, Tensor) or output.ndim != 4:
            return 0, []
        tag, _ = self.tags.get(_key(output), (None, None))
        axis = 1 if tag is None or tag.axis is None else tag.axis
        return axis, [n for d, n in enumerate(output.shape) if d not in (0, axis)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__.partition(".")[0], kwargs or {}
        known = [self.tags[key] for t in _tensors((args, kwargs)) if (key := _key(t)) in self.tags]
        if name in ("add", "add_") and len(known) == 2:
            self.add(*known)
        result = func(*args, **kwargs)
        for tensor in _tensors(result) if known else ():
            self.tags[_key(tensor)] = self.follow(name, args, known, tensor), tensor
        return result

    def add(self, *operands: tuple[Tag, Tensor]) -> None:
        """Treat the running module as a residual block, and the deeper operand as its branch."""
        (shortcut, x), (branch, y) = sorted(operands, key=lambda operand: operand[0].depth)
        if x.ndim != 4 or x.shape != y.shape or shortcut.depth == branch.depth:
            return
        # A norm before the block, or before the fork, does not belong to the branch.
        block = f"{self.running[-1]}.".lstrip(".")
        if branch.norm and branch.norm != shortcut.norm and branch.norm.startswith(block):
            self.branches[branch.norm] = None

    def follow(self, name: str, args: Any, known: list[tuple[Tag, Tensor]], result: Tensor) -> Tag:
        """Return the tag of an operation's result."""
        depth = max(tag.depth for tag, _ in known)
        if any(norm in name for norm in NORMS):
            last = "layer" in name or "rms" in name  # normalizes the last len(args[1]) axes
            return Tag(depth + 1, self.running[-1], result.ndim - len(args[1]) if last else 1)
        # A smaller operand is broadcast (a gate or a mask), and its norm is not the map's.
        most = max(tensor.numel() for _, tensor in known)
        whole = [pair for pair in known if name == "cat" or pair[1].numel() == most]
        norms = {tag.norm for tag, _ in whole}
        norm = norms.pop() if len(norms) == 1 else None
        if name in LAYERS:
            return Tag(depth + 1, norm, LAYERS[name] % result.ndim)
        tag, source = max(whole, key=lambda pair: pair[0].depth)
        return Tag(depth, norm, _axis_after(tag.axis, source, result))


def _key(tensor: Tensor) -> tuple:
    """Identify a tensor; a view may reach its user as another Python object."""
    memory = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return memory, tensor.shape, tensor.stride()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _axis_after(axis: int | None, old: Tensor, new: Tensor) -> int | None:
    """Return the channel axis after an operation that is not a layer."""
    if axis is None or old.untyped_storage()._cdata != new.untyped_storage()._cdata:
        return axis if old.ndim == new.ndim else None
    # A view (permuted, flattened, split) keeps the stride of the channels.
    kept = (d for d, size in enumerate(new.shape) if size > 1 and new.stride(d) == old.stride(axis))
    return next(kept, None)


def example_of(model: nn.Module, image: Tensor | None) -> Tensor:
    """Return an image for the probe, on the network's device."""
    like = next(model.parameters(), torch.empty(()))
    if image is None:
        convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
        channels = next((m.in_channels for m in convolutions), 3)
        timms: Any = getattr(model, "pretrained_cfg", getattr(model, "default_cfg", None)) or {}
        side = getattr(model, "image_size", None) or 224
        size = timms.get("input_size", (side, side))[-2:]
        generator = torch.Generator().manual_seed(0)  # leaves the global generator unchanged
        image = torch.randn(1, channels, *size, generator=generator, device="cpu")
    return image.to(like.device, like.dtype)


def watch(model: nn.Module, image: Tensor) -> Probe:
    """Run the network once in eval mode, without changing it."""
    probe = Probe(image)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExitStack() as undo:
        for path, module in model.named_modules():
            undo.callback(setattr, module, "training", module.training)
            module.training = False
            undo.callback(module.register_forward_pre_hook(partial(probe.enter, path)).remove)
            undo.callback(module.register_forward_hook(partial(probe.leave, path)).remove)
        try:
            with torch.no_grad(), probe:
                functional_call(model, buffers, (image,))
        except Exception as error:
            raise ValueError(
                f"The network fails on `image` (of shape {tuple(image.shape)}) with "
                f"{type(error).__name__}: {error}; pass an `image` that it accepts."
            ) from error
    return probe
