"""Finding the state dict of the network in the checkpoint of any program."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from se_lightning.models.weights.layouts import recognise

__all__ = ["find_state_dict", "unwrapped"]

# Keys of the averaged and of the raw weights in checkpoints of training scripts.
_AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_state",
    "model_state_ema",
    "params_ema",
    "ema_model",
    "ema",
)
_RAW = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "net",
    "network",
    "params",
    "weights",
    "module",
)
# What torch puts into the paths of compiled, sharded and recomputed modules.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def find_state_dict(content: Any, name: str, *, use_ema: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint.

    Args:
        content: The content of the file.
        name: Its name, for messages.
        use_ema: Whether to prefer averaged weights.

    Raises:
        ValueError: If there is none.

    Example:
        >>> import torch
        >>> list(find_state_dict({"model": {"fc.bias": torch.zeros(2)}, "epoch": 3}, "x.pth"))
        ['fc.bias']
    """
    raw = () if use_ema else ("current_model_state",)  # Lightning's key, next to the average
    found = _search(content, (*raw, *(_AVERAGED if use_ema else ()), *_RAW))
    if found is None:
        raise ValueError(f"{name} contains {_what(content)}")
    return {_WRAPPERS.sub("", key): tensor for key, tensor in found.items()}


def _search(content: Any, keys: tuple[str, ...]) -> Mapping[str, Tensor] | None:
    """Return the first state dict at one of the keys, or below."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return content
    found = (_search(content[key], keys) for key in keys if key in content)
    return next((state for state in found if state is not None), None)


def _what(content: Any) -> str:
    """Return what a checkpoint contains instead of a state dict."""
    values = [content, *(content.values() if isinstance(content, Mapping) else ())]
    if any("_modules" in getattr(value, "__dict__", ()) for value in values):
        return (
            "no state dict but a pickled network, whose code would have to be run. Save its "
            "weights: torch.save(network.state_dict(), path)."
        )
    return "no state dict, which maps names to tensors."


def unwrapped(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """Remove the prefixes of wrappers: ``module.``, ``backbone.``.

    Returns:
        The tensors by their names in the network, and the names of those that were beside the
        network in a wrapper, such as a loss.
    """
    state.pop("n_averaged", None)  # of torch's AveragedModel
    children = {name for name, _ in model.named_children()}
    beside: set[str] = set()
    while True:
        first = {key.partition(".")[0] if "." in key else "" for key in state.keys() - beside}
        if len(first) > 1:  # what a wrapper has beside the network has no convolutions
            first = {key.partition(".")[0] for key, tensor in state.items() if tensor.ndim > 2}
        if len(first) != 1 or "" in first or first & children:
            return state, beside
        prefix = f"{first.pop()}."
        if any(re.match(pattern, prefix) for pattern, _ in recognise(state).renames):
            return state, beside  # the prefix is part of a layout, mmpretrain's
        beside |= {key for key in state if not key.startswith(prefix)}
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
