"""TorchScript: a network is traced by torch.fx before it is compiled."""

import torch
from torch import fx, nn

__all__ = ["traced"]


class _Tracer(fx.Tracer):
    """Traces through all modules but torch's layers and those whose forward depends on the mode."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if "_conv_forward" in vars(module):  # a convolution that slices its input
            return False
        opaque = isinstance(module, torch.jit.ScriptModule) or not getattr(
            module, "trace_through", True
        )
        return opaque or super().is_leaf_module(module, path)


def traced(network: nn.Module) -> fx.GraphModule:
    """Return the forward pass of a network as a module that TorchScript can compile.

    TorchScript has no modules by name and no functions as arguments, with which the forward passes
    here are written. Layers, and so parameters and their names, are those of the network.
    """
    return fx.GraphModule(network, _Tracer().trace(network), type(network).__name__)
