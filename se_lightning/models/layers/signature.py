"""The options of networks: their names, timm's names for them, and unknown ones."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from inspect import Parameter
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from se_lightning.arguments import refuse_unknown
from se_lightning.models.layers.options import Excitation, own_options

__all__ = ["DEFAULTS", "arguments_of", "renamed", "with_checked_options"]

# Defaults of the options that a constructor takes by `**`.
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Excitation)}
DEFAULTS |= {"stages": None, "global_pool": "avg", "init": "fan_out"}
_TIMMS_NAMES = {"in_chans": "in_channels"}


def arguments_of(network: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield the arguments of a network, including those of its ``**`` parameter."""
    init: Any = network.__init__ if isinstance(network, type) else network  # type: ignore[misc]
    hints = get_type_hints(init)
    own = inspect.signature(network).parameters
    for name, parameter in own.items():
        if parameter.kind is not Parameter.VAR_KEYWORD:
            yield parameter.replace(annotation=hints[name])
        elif get_origin(hints[name]) is Unpack:
            defaults = {**DEFAULTS, **getattr(network, "gate_defaults", {})}
            for option, hint in get_type_hints(get_args(hints[name])[0]).items():
                yield Parameter(
                    option, Parameter.KEYWORD_ONLY, default=defaults[option], annotation=hint
                )
            yield from own_options().values()
        elif isinstance(network, type):  # passed to the parent class
            yield from (p for p in arguments_of(network.__mro__[1]) if p.name not in own)


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace timm's names of options, with a warning.

    Raises:
        ValueError: If an option is given under both names.
    """
    found = dict(options)
    for name, ours in _TIMMS_NAMES.items():
        if name not in found:
            continue
        if ours in found:
            raise ValueError(f"`{name}` is timm's name of `{ours}`; give one of them.")
        warnings.warn(f"`{name}` is called `{ours}` here.", stacklevel=3)
        found[ours] = found.pop(name)
    return found


def with_checked_options(network: Any) -> None:
    """Let the constructor of a class of networks take timm's names and refuse unknown options."""
    init = network.__init__

    @functools.wraps(init)
    def checked_init(self: Any, *arguments: Any, **options: Any) -> None:
        options = renamed(options)
        if "pretrained" in options:
            raise ValueError(
                f"{network.family} has no option `pretrained`: build the network, and load a file "
                "or a name on the Hugging Face hub with load_weights(network, NAME)."
            )
        refuse_unknown(network.family, options, (p.name for p in arguments_of(network)))
        init(self, *arguments, **options)

    network.__init__ = checked_init
