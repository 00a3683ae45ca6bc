"""Surgery: gates put into networks that were built without them, and taken out again."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, TypedDict, Unpack

from torch import Tensor, nn

from se_lightning.models.layers.find import own_gates, warn_of_single_units
from se_lightning.models.layers.gates import GATES, Gate
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
    """The options of inserted gates; :class:`Excitation` says what they mean."""

    ratio: float
    gate: str
    squeeze: str
    merge: str
    se_bias: bool
    divisor: int


def _runs_in_turn(module: nn.Module) -> bool:
    """Tell whether a module does no more than run its children one after the other."""
    return type(module).forward is nn.Sequential.forward


def _stages(model: nn.Module, probe: Probe) -> list[str]:
    """Return the paths of the last blocks of each resolution."""

    def blocks(path: str, module: nn.Module) -> Iterator[str]:
        children = {f"{path}.{n}".lstrip("."): child for n, child in module.named_children()}
        sizes = [probe.layout(child)[1] for child in children]
        mixed = _runs_in_turn(module) and any(size != sizes[0] for size in sizes)
        # What did not run itself is a ModuleList.
        if mixed or not path or path not in probe.outputs:
            for child in children.items():
                yield from blocks(*child)
        elif children and max(probe.layout(path)[1], default=1) > 1:
            yield path

    found = sorted(blocks("", model), key=list(probe.outputs).index)
    return [list(stage)[-1] for _, stage in groupby(found, lambda path: probe.layout(path)[1])]


def _places(model: nn.Module, probe: Probe, where: str) -> list[str]:
    """Return the paths of the modules that get a gate, once it is sure that all can have one."""
    globbed = (path for path, _ in model.named_modules() if path and fnmatchcase(path, where))
    rules = {"residual": lambda: list(probe.branches), "stages": lambda: _stages(model, probe)}
    places = rules.get(where, lambda: list(globbed))()
    if not places:
        maps = [path for path in probe.outputs if path and probe.layout(path)[0]]
        raise ValueError(
            f"`where` (={where!r}) must find places for gates, and finds none in this "
            f"{type(model).__name__}; take 'residual' (blocks that add a branch with a norm), "
            "'stages' (the last block of each resolution), or a glob over module paths such as "
            f"{', '.join(maps[:: max(1, len(maps) // 3)])}."
        )
    for path in places:
        runs, fault = len(probe.outputs.get(path, [])), ""
        if runs != 1:
            fault = f"it ran {runs} times in a forward, and a gate serves one feature map"
        elif probe.layout(path)[0] not in (1, 3):
            fault = "its output is no feature map (N, C, H, W) or (N, H, W, C)"
        elif isinstance(model.get_submodule(path), nn.ModuleDict):
            # torchvision's DenseNet blocks, whose forward hands each child the list of all maps.
            fault = "it is a ModuleDict, whose forward may run the gate as one more of its layers"
        elif hasattr(model.get_submodule(path), "se"):
            fault = "it has an `se` already; remove_excitation takes out what was inserted"
        if fault:
            raise ValueError(f"`where` (={where!r}) must not find `{path}`: {fault}.")
    return places


class ChannelsLast(nn.Module):
    """A gate over (N, H, W, C), which is how the layer norms of ConvNeXt and Swin have it."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.nchw = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.nchw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def inserted_excitation(gates: InsertedGateOptions) -> Excitation:
    """Check the options, and take the activation that makes an identity of the gates.

    Raises:
        ValueError: naming the option that there is not, or that does not fit.
    """
    known = [*InsertedGateOptions.__annotations__, *own_options()]
    for name in gates:
        if name not in known:
            raise ValueError(
                f"add_excitation has no option `{name}`. Its gates' options are: "
                f"{', '.join(known)}."
            )
    excitation = Excitation.of(**gates)
    kind = GATES[excitation.gate]
    if not issubclass(kind, Gate):
        return excitation
    return replace(excitation, **kind.identity_options({**vars(excitation), **excitation.own}))


def _insert(excitation: Excitation, module: nn.Module, output: Tensor, axis: int) -> None:
    """Give a module a gate, which leaves its output unchanged until the gate has learned."""
    gate: Any = excitation.build(output.shape[axis])
    for _, part, parts in own_gates(gate):
        if isinstance(parts.reduce, nn.Linear | nn.Conv2d):
            # He's, without biases: behind a batch norm the squeezed channels sum to zero over the
            # batch, so that no hidden unit is dead for all images.
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

    A handle finds its hook in a copy of the module, and keeps later hooks from taking its number
    in an unpickled one.
    """
    in_turn = _runs_in_turn(module)
    module.se.insertion = None if in_turn else module.register_forward_hook(_excite)  # type: ignore


def restore_hooks(model: nn.Module) -> None:
    """Make all inserted gates work again where another module has taken the place of their own.

    ``SyncBatchNorm.convert_sync_batchnorm``, which Lightning does after the module's set-up, takes
    over the children of a norm and not its hooks.
    """
    for module in _places_of_gates(model):
        if not _runs_in_turn(module) and _excite not in module._forward_hooks.values():
            _hook(module)


def _places_of_gates(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(getattr(m, "se", None), "insertion")]


def _excite(module: Any, inputs: Any, output: Tensor) -> Tensor:
    """Apply the gate; at module level, so that pickles have the hook."""
    return module.se(output)


def add_excitation(
    model: nn.Module,
    where: str = "residual",
    *,
    image: Tensor | None = None,
    **gates: Unpack[InsertedGateOptions],
) -> nn.Module:
    r"""Put gates into a network of torchvision's, timm's or one's own, in place.

    They are :math:`2 \sigma(W_2\, \mathrm{ReLU}(W_1 z))` with :math:`W_2 = 0`: the outputs stay
    the same to the last bit, and the gates learn from the first step. Each is the child ``se`` of
    a module and rescales its output by a forward hook (in a plain ``nn.Sequential``, as the last
    child); the network's own state-dict keys stay. Where the places are is seen in one forward.

    Insert before ``torch.compile``, and call :func:`restore_hooks` after
    ``SyncBatchNorm.convert_sync_batchnorm``, whose new norms have no hooks (our LightningModules
    do).

    Args:
        model: the network.
        where: ``"residual"``: after the last norm of each residual branch; ``"stages"``: after the
            last block of each resolution; else a glob over module paths, ``"layer3.*.bn3"``.
        image: (1, C, H, W), what the network takes; None makes one of the size that timm's
            configuration or the network's ``image_size`` tells, or 224 pixels.
        **gates: ``ratio``, ``gate``, ``squeeze``, ``merge`` (sum or max), ``se_bias``, ``divisor``
            of :class:`Excitation`.

    Shape:
        The gates take and return (N, C, H, W), or (N, H, W, C) where the network has it so.

    Raises:
        ValueError: naming the argument that does not fit; the network is then as it was.

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
    """Take out, in place, all gates that :func:`add_excitation` put in, and no others.

    Raises:
        ValueError: if there are none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> len(remove_excitation(add_excitation(net, "1", ratio=2))[1].state_dict())
        5
    """
    places = _places_of_gates(model)
    if not places:
        raise ValueError(f"`model` (a {type(model).__name__}) has no gate of add_excitation's.")
    for place in places:
        if place.se.insertion is not None:
            place.se.insertion.remove()
        del place.se
    return model
