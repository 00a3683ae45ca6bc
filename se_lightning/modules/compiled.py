"""Names in networks that were wrapped by ``torch.compile``."""

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["keys_of", "plain", "rename"]

_WRAPPER = "_orig_mod"


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
