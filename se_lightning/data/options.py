"""The options that all datamodules have, and how a class shows those of its base classes."""

import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, TypedDict, get_args, get_type_hints

from se_lightning.arguments import argument_docs

__all__ = ["ImageOptions", "constructor_of"]


class ImageOptions(TypedDict, total=False):
    """The options of :class:`se_lightning.data.base.ImageDataModule`."""

    batch_size: int
    eval_batch_size: int
    drop_last: bool
    pin_memory: bool | None
    seed: int
    rotation: float
    pixel_jitter: int
    color_jitter: float | Sequence[float]
    rand_augment: int | None
    trivial_augment: bool
    random_erasing: float
    cutout: int
    mixup: float
    cutmix: float
    repeats: int


def constructor_of(cls: type, defaults: Mapping[str, Any]) -> Any:
    """Return a ``__new__`` whose signature lists the options that ``__init__`` passes on.

    ``inspect.signature(cls)`` and command-line parsers such as Lightning's read it. The signature
    of ``__init__`` must stay as it is: ``save_hyperparameters`` looks up its parameters in the
    frame of the call.

    Args:
        cls: A class whose ``__init__`` takes ``**options: Unpack[...]`` for its base class.
        defaults: Defaults of those options that differ from the base class.
    """

    def new(cls: type, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls)

    parameters = [Parameter("cls", Parameter.POSITIONAL_ONLY), *_parameters(cls, defaults)]
    new.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    new.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters[1:]}
    new.__doc__ = argument_docs(*reversed(cls.__mro__))
    return new


def _parameters(cls: Any, defaults: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of ``__init__`` with those of the base class for ``**options``."""
    own, hints = inspect.signature(cls.__init__).parameters, get_type_hints(cls.__init__)
    inherited = inspect.signature(cls.__base__).parameters
    found = []
    for name, parameter in list(own.items())[1:]:
        if parameter.kind is not Parameter.VAR_KEYWORD:
            found.append(parameter.replace(annotation=hints[name]))
            continue
        for option in get_type_hints(get_args(hints[name])[0]):
            default = defaults.get(option, inherited[option].default)
            found.append(inherited[option].replace(default=default))
    return found
