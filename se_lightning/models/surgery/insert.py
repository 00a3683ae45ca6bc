"""Inserting gates into networks that were built without them, and removing them again."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, TypedDict, Unpack

from torch import Tensor, nn

from se_lightning.arguments import refuse_unknown
from se_lightning.models.layers.find import own_gates, warn_of_single_units
from se_lightning.models.layers.gate_base import Gate
from se_lightning.models.layers.gates import GATES
from se_lightning.models.layers.options import Excitation, own_options
from se_lightning.models.surgery.forward_trace import Probe, example_of, watch

__all__ = [
    "InsertedGateOptions",
    "add_excitation",
    "inserted_excitation",
    "remove_excitation",
    "restore_hooks",
]


class InsertedGateOptions(TypedDict, total=False):
    """Options of inserted gates; see :class:`Excitation`."""

    ratio: float
    gate: str
    squeeze: str
    merge: str
    se_bias: bool
    divisor: int


def _runs_in_turn(module: nn.Module) -> bool:
    """Return whether a module only runs its children one after another."""
    return type(module).forward is nn.Sequential.forward


def _stages(model: nn.Module, probe: Probe) -> list[str]:
    """Return the paths of the last blocks of each resolution."""

    def blocks(path: str, module: nn.Module) -> Iterator[str]:
        children = {f"{path}.{n}".lstrip("."): child for n, child in module.named_children()}
        sizes = [probe.layout(child)[1] for child in children]
        mixed = _runs_in_turn(module) and any(size != sizes[0] for size in sizes)
        # A module that did not run itself is a ModuleList.
        if mixed or not path or path not in probe.outputs:
            for child in children.items():
                yield from blocks(*child)
        elif children and max(probe.layout(path)[1], default=1) > 1:
            yield path

    found = sorted(blocks("", model), key=list(probe.outputs).index)
    return [list(stage)[-1] for _, stage in groupby(found, lambda path: probe.layout(path)[1])]


def _places(model: nn.Module, probe: Probe, where: str) -> list[str]:
    """Return the paths of the modules that get a gate; refuse those that cannot have one."""
    globbed = (path for path, _ in model.named_modules() if path and fnmatchcase(path, where))
    rules = {"residual": lambda: list(probe.branches), "stages": lambda: _stages(model, probe)}
    places = rules.get(where, lambda: list(globbed))()
    if not places:
        maps = [path for path in probe.outputs if path and probe.layout(path)[0]]
        raise ValueError(
            f"`where` (={where!r}) matches no place for a gate in this "
            f"{type(model).__name__}; use 'residual' (blocks that add a branch with a norm), "
            "'stages' (the last block of each resolution), or a glob over module paths such as "
            f"{', '.join(maps[:: max(1, len(maps) // 3)])}."
        )
    for path in places:
        runs, fault = len(probe.outputs.get(path, [])), ""
        if runs != 1:
            fault = f"it ran {runs} times in a forward pass, but a gate serves one feature map"
        elif probe.layout(path)[0] not in (1, 3):
            fault = "its output is not a feature map (N, C, H, W) or (N, H, W, C)"
        elif isinstance(model.get_submodule(path), nn.ModuleDict):
            # torchvision's DenseNet blocks, whose forward passes all maps to each child.
            fault = "it is a ModuleDict, whose forward may run the gate as another layer"
        elif hasattr(model.get_submodule(path), "se"):
            fault = "it already has an `se`; remove_excitation removes inserted gates"
        if fault:
            raise ValueError(f"`where` (={where!r}) must not match `{path}`: {fault}.")
    return places


class ChannelsLast(nn.Module):
    """A gate over (N, H, W, C), the layout of ConvNeXt's and Swin's layer norms."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.nchw = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.nchw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def inserted_excitation(gates: InsertedGateOptions) -> Excitation:
    """Check the options, and choose an activation with which the gates start as identities.

    Raises:
        ValueError: If an option is unknown, its value is refused, or the gate cannot start as an
            identity.
    """
    known = [*InsertedGateOptions.__annotations__, *own_options()]
    refuse_unknown("add_excitation", gates, known)
    excitation = Excitation.of(**gates)
    kind = GATES[excitation.gate]
    if not issubclass(kind, Gate):
        return excitation
    return replace(excitation, **kind.identity_options({**vars(excitation), **excitation.own}))


def _insert(excitation: Excitation, module: nn.Module, output: Tensor, axis: int) -> None:
    """Add a gate to a module; its output is unchanged until the gate has learned."""
    gate: Any = excitation.build(output.shape[axis])
    for _, part, parts in own_gates(gate):
        if isinstance(parts.reduce, nn.Linear | nn.Conv2d):
            # He's initialization without biases: after a batch norm the squeezed channels sum to
            # zero over the batch, so no hidden unit is dead for all images.
            nn.init.kaiming_normal_(parts.reduce.weight)
            if parts.reduce.bias is not None:
                nn.init.zeros_(parts.reduce.bias)
        part.zero_last_layer()
    like = next(module.parameters(), output)
    gate = ChannelsLast(gate) if axis == 3 else gate
    module.add_module("se", gate.to(like.device, like.dtype).train(module.training))
    _hook(module)


def _hook(module: nn.Module) -> None:
    """Make a module use its gate, and mark the gate as inserted.

    The mark is the hook's handle, which also works in a copy or an unpickled module.
    """
    in_turn = _runs_in_turn(module)
    module.se.insertion = None if in_turn else module.register_forward_hook(_excite)  # type: ignore


def restore_hooks(model: nn.Module) -> None:
    """Restore the hooks of inserted gates whose module was replaced by another one.

    ``SyncBatchNorm.convert_sync_batchnorm``, which Lightning calls after the module's setup, keeps
    the children of a norm but not its hooks.
    """
    for module in _places_of_gates(model):
        if not _runs_in_turn(module) and _excite not in module._forward_hooks.values():
            _hook(module)


def _places_of_gates(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(getattr(m, "se", None), "insertion")]


def _excite(module: Any, inputs: Any, output: Tensor) -> Tensor:
    """Apply the gate; at module level, so that the hook can be pickled."""
    return module.se(output)


def add_excitation(
    model: nn.Module,
    where: str = "residual",
    *,
    image: Tensor | None = None,
    **gates: Unpack[InsertedGateOptions],
) -> nn.Module:
    r"""Insert gates into a network of torchvision, timm or any other, in place.

    The gates are :math:`2 \sigma(W_2\, \mathrm{ReLU}(W_1 z))` with :math:`W_2 = 0`: the outputs
    stay the same bit for bit, and the gates learn from the first step. Each gate is the child
    ``se`` of a module and rescales its output by a forward hook (in a plain ``nn.Sequential``, as
    the last child); the network's state-dict keys do not change. One forward pass finds the places.

    Insert before ``torch.compile``, and call :func:`restore_hooks` after
    ``SyncBatchNorm.convert_sync_batchnorm``, whose new norms have no hooks (this package's
    LightningModules do so).

    Args:
        model: The network.
        where: ``"residual"``: after the last norm of each residual branch; ``"stages"``: after the
            last block of each resolution; else a glob over module paths, ``"layer3.*.bn3"``.
        image: Example input, (1, C, H, W); None creates one of the size in timm's configuration
            or in the network's ``image_size``, else of 224 pixels.
        **gates: ``ratio``, ``gate``, ``squeeze``, ``merge`` (sum or max), ``se_bias``, ``divisor``
            of :class:`Excitation`.

    Shape:
        The gates take and return (N, C, H, W), or (N, H, W, C) where the network uses that.

    Raises:
        ValueError: If an option is refused, the network fails on `image`, or `where` finds no
            place or an unsuitable one; the network is then unchanged.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> add_excitation(net, "1", ratio=2)[1].se.fc1
        Conv2d(8, 4, kernel_size=(1, 1), stride=(1, 1))

    Reference:
        Hu, Shen, Albanie, Sun, Wu. Squeeze-and-Excitation Networks. arXiv:1709.01507.
    """
    excitation = inserted_excitation(gates)
    if excitation.gate == "none":
        return model
    probe = watch(model, example_of(model, image))
    for path in _places(model, probe, where):
        module, output = model.get_submodule(path), probe.outputs[path][0]
        _insert(excitation, module, output, probe.layout(path)[0])
    warn_of_single_units(model)
    return model


def remove_excitation(model: nn.Module) -> nn.Module:
    """Remove, in place, the gates that :func:`add_excitation` inserted, and no others.

    Raises:
        ValueError: If there are none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> len(remove_excitation(add_excitation(net, "1", ratio=2))[1].state_dict())
        5
    """
    places = _places_of_gates(model)
    if not places:
        raise ValueError(
            f"`model` (a {type(model).__name__}) has no gate inserted by add_excitation."
        )
    for place in places:
        if place.se.insertion is not None:
            place.se.insertion.remove()
        del place.se
    return model
