"""Compiling networks in place, and names in networks that were wrapped by ``torch.compile``."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from se_lightning.arguments import boolean, one_of
from se_lightning.models.layers.units import repeated_units

__all__ = ["check_compiler", "compile_network", "is_compiled", "keys_of", "plain", "rename"]

_MODES = ("default", "reduce-overhead", "max-autotune")
_BACKENDS = ("inductor", "aot_eager", "eager")
# Versions of one function: training and evaluation, with and without taps, last smaller batches,
# and more where a callback unfreezes layers one by one. torch's limit is 8.
_VERSIONS = 32
_WRAPPER = "_orig_mod"
_NUMBERS = itertools.count()


def compile_network(
    network: nn.Module,
    *,
    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default",
    regional: bool = False,
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor",
) -> None:
    """Compile a network in place with ``torch.compile``, at its first call; its names stay.

    Training code is compiled for each shape of a batch, and evaluation code for any number of
    images, so that what runs does not depend on earlier batches and a resumed run equals an
    uninterrupted one. Nothing runs uncompiled without notice: what torch cannot compile, or
    compiles more than 32 times, raises an exception. Hooks may be added and removed at any time;
    the next call compiles again. (For this, the process-wide ``recompile_limit`` and
    ``skip_nnmodule_hook_guards`` of ``torch._dynamo.config`` are set.)

    Args:
        network: The network. Weights may be loaded before or after.
        mode: As in :func:`torch.compile`. ``"reduce-overhead"`` uses CUDA graphs, and
            ``"max-autotune"`` also chooses the fastest kernels by measuring them, so that their
            last bits may differ between two runs.
        regional: Compile the repeated units (residual blocks) one by one, and each structure once;
            the rest runs uncompiled. Networks of many equal units start sooner, but steps may be
            slower: on a CPU, slower than uncompiled ones.
        backend: ``"inductor"`` generates code. To debug, ``"aot_eager"`` only traces operations
            and gradients, and ``"eager"`` only operations.

    Raises:
        ValueError: If an argument is refused, or the network has no repeated units.

    Example:
        >>> from se_lightning.models import se_resnet20
        >>> net = se_resnet20(ratio=4)
        >>> compile_network(net, regional=True)
        >>> is_compiled(net), list(net.state_dict())[0]
        (True, 'conv1.weight')
    """
    one_of("mode", mode, _MODES)
    boolean("regional", regional)
    one_of("backend", backend, _BACKENDS)
    if backend != "inductor" and mode != "default":
        raise ValueError(f"`mode` (={mode!r}) is an option of backend='inductor'; leave one out.")
    groups = repeated_units(network) if regional else [[network]]
    if not groups:
        raise ValueError(
            f"`regional` (=True): {type(network).__name__} has no repeated units that could share "
            "compiled code; leave it out to compile the whole network."
        )
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VERSIONS)
    config.skip_nnmodule_hook_guards = False
    if getattr(network, "grad_checkpointing", False):
        if backend == "eager":  # which would update running statistics twice
            raise ValueError("`backend` (='eager'): with grad_checkpointing, use aot_eager.")
        config.optimize_ddp = False  # it refuses recomputed parts
    for modules in groups:
        function = torch.compile(
            _function(type(modules[0]).__name__),
            mode=mode,
            backend=backend,
            fullgraph=True,
            dynamic=False,
        )
        for module in modules:
            module._compiled_call_impl = _Call(module, function)


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Check that ``torch.compile`` works in this process, for networks on a device.

    Raises:
        ValueError: If it does not.
    """
    config: Any = torch._dynamo.config
    for value, variable in (
        (config.disable, "TORCH_COMPILE_DISABLE"),
        (config.suppress_errors, "TORCHDYNAMO_SUPPRESS_ERRORS"),
    ):
        if value:
            raise ValueError(
                f"{variable} is set, which would run the network uncompiled; unset it."
            )
    try:
        torch._dynamo.eval_frame.check_if_dynamo_supported()
    except RuntimeError as error:
        raise ValueError(f"torch.compile does not work here: {error}") from error
    if backend != "inductor":
        return
    if device.type == "cpu":
        _check_cpp()
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                "torch.compile needs Triton and a GPU of compute capability 7.0 or higher: "
                "pip install triton, or do not compile."
            )


def _check_cpp() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ValueError(
            "torch.compile needs a C++ compiler, and there is none: install g++, or set the "
            f"environment variable CXX to one, or do not compile. ({error})"
        ) from error


def _function(name: str) -> Callable[..., Any]:
    """Return a function that runs a module, with a code object of its own.

    torch keeps compiled versions by code object, and tries them one after another.
    """
    code = _run.__code__.replace(co_name=f"{name}_{next(_NUMBERS)}")
    return FunctionType(code, globals())


def _run(module: Any, recomputes: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if recomputes:
        return checkpoint(module._call_impl, *args, use_reentrant=False)
    return module._call_impl(*args, **kwargs)


class _Call:
    """What a module runs when it is called, as ``Module.compile`` sets it.

    Args:
        module: The module.
        function: Compiled function, which modules of the same structure share.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._module, self._function = module, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._module.training:
            for each in args:
                if isinstance(each, Tensor) and each.ndim:
                    torch._dynamo.maybe_mark_dynamic(each, 0)
        return self._function(self._module, False, args, kwargs)

    def recomputing(self, x: Tensor) -> Any:
        """Run the module, and rerun it to compute its gradients."""
        return self._function(self._module, True, (x,), {})


def is_compiled(network: nn.Module) -> bool:
    """Return whether a network, or a part of it, is compiled at its first call."""
    return any(
        hasattr(module, _WRAPPER) or module._compiled_call_impl is not None
        for module in network.modules()
    )


def plain(network: nn.Module) -> nn.Module:
    """Return the network itself, if it is wrapped by ``torch.compile``."""
    return getattr(network, _WRAPPER, network)


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != _WRAPPER)


def rename(state: dict[str, Any]) -> None:
    """Rename the keys of a state dict to those of the network before it was wrapped, in place."""
    if any(_WRAPPER in key for key in state):
        entries = list(state.items())
        state.clear()
        state.update((_plain(key), value) for key, value in entries)


def keys_of(module_keys: Iterable[str], state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with the keys of a module, of which either may be wrapped.

    Args:
        module_keys: Keys of the module's own state dict.
        state: The state dict to load.

    Example:
        >>> keys_of(["net._orig_mod.bias"], {"net.bias": 1, "other": 2})
        {'net._orig_mod.bias': 1, 'other': 2}
    """
    names = {_plain(key): key for key in module_keys}
    return {names.get(_plain(key), key): value for key, value in state.items()}
