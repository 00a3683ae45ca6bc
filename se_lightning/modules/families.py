"""One LightningModule per family of networks, with the signature of its network."""

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import FunctionType
from typing import Any, ClassVar, TypedDict, Unpack, get_type_hints

from torch import nn

from se_lightning import models
from se_lightning.arguments import argument_docs, plain, refuse_unknown
from se_lightning.models.layers.gates import GATES
from se_lightning.models.layers.options import HeadOptions, StagedGateOptions, own_options
from se_lightning.models.layers.signature import DEFAULTS, arguments_of, renamed
from se_lightning.modules.classifier import TRAINING_OPTIONS, ImageClassifier

__all__ = [
    "SEBNInceptionModule",
    "SEDenseNetModule",
    "SEInceptionResNetV2Module",
    "SEInceptionV3Module",
    "SEMobileNetModule",
    "SENestedModule",
    "SENet154Module",
    "SEPreActResNetModule",
    "SEResNeXtModule",
    "SEResNetModule",
    "SEShakeShakeModule",
    "SEShuffleNetModule",
    "SESimpleModule",
    "SEVGG16BNModule",
    "SEWideResNetModule",
]


# Training options with another default than in ImageClassifier.
_DEFAULTS: dict[str, Any] = {"channels_last": True}


class _NoOptions(TypedDict):
    """No options; lets a signature take unknown names without listing any."""


class FamilyModule(ImageClassifier):
    """Base class of the LightningModules that build their network from plain arguments.

    A subclass sets ``network`` to the class of a network, or to a function that returns one. Its
    arguments are those of ``network`` and the training options of :class:`ImageClassifier`;
    ``num_classes`` defaults to 10. The positional arguments of ``network`` stay positional unless
    they default to None, and are followed by ``num_classes``.

    Raises:
        ValueError: If an option is unknown or its value is refused.

    Example:
        >>> SEResNetModule(20, ratio=4, num_classes=10).backbone.num_features
        64
        >>> SEResNetModule(depth=[1, 2], widths=[8, 24], ratio=4).backbone.num_features
        24
    """

    network: ClassVar[Callable[..., nn.Module]]
    _signature: ClassVar[Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "network" in vars(cls) and "__init__" not in vars(cls):
            cls._signature = _signature(cls.network)
            cls.__init__ = _with_signature(cls._signature)  # type: ignore[method-assign]
            cls.__init__.__doc__ = _docs(cls.network)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        given = self._signature.bind(*arguments, **renamed(options)).arguments
        # `save_hyperparameters` reads `options` from this frame: the given options and the defaults
        # of the network, without those of its gates, head and training.
        given = given.pop("unknown", {}) | given
        # A gate may have been added after this class.
        known = [
            name for name in (*self._signature.parameters, *own_options()) if name != "unknown"
        ]
        refuse_unknown(getattr(self.network, "family", type(self).__name__), given, known)
        options = {name: plain(value) for name, value in given.items()}
        unsaved = {*DEFAULTS, *own_options(), *TRAINING_OPTIONS, "unknown"}
        for name, parameter in self._signature.parameters.items():
            if name not in unsaved:
                options.setdefault(name, parameter.default)
        network = self.network(**{k: v for k, v in options.items() if k not in TRAINING_OPTIONS})
        super().__init__(network, options["num_classes"], **self._training(options))

    def _training(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the training options."""
        return _DEFAULTS | {name: options[name] for name in TRAINING_OPTIONS if name in options}


def _signature(network: Callable[..., nn.Module]) -> Signature:
    """Return a signature with the arguments of a network and the training options."""
    found = {parameter.name: parameter for parameter in arguments_of(network)}
    found["num_classes"] = found["num_classes"].replace(default=10)
    positional: list[Parameter] = []
    keyword: list[Parameter] = []
    for name, parameter in found.items():
        named = parameter.kind is Parameter.KEYWORD_ONLY or parameter.default is None
        if name != "num_classes":
            (keyword if named else positional).append(parameter)
    positional.append(found["num_classes"])
    training = inspect.signature(ImageClassifier).parameters
    hints = get_type_hints(ImageClassifier.__init__)
    keyword += [
        training[name].replace(annotation=hints[name], default=_DEFAULTS.get(name, each.default))
        for name, each in training.items()
        if name in TRAINING_OPTIONS
    ]
    return Signature(
        [
            *(p.replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for p in positional),
            *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in keyword),
            # Otherwise `load_from_checkpoint` would drop unknown names instead of refusing them.
            Parameter("unknown", Parameter.VAR_KEYWORD, annotation=Unpack[_NoOptions]),
        ]
    )


def _with_signature(signature: Signature) -> Any:
    """Return a copy of FamilyModule's constructor with another signature."""
    init = FamilyModule.__init__
    copy: Any = FunctionType(init.__code__, init.__globals__, "__init__", closure=init.__closure__)
    parameters = signature.parameters.values()
    copy.__signature__ = Signature([Parameter("self", Parameter.POSITIONAL_ONLY), *parameters])
    copy.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return copy


def _docs(network: Callable[..., nn.Module]) -> str:
    """Return the documentation of the arguments of a network and its gates."""
    gates = [gate for gate in GATES.values() if isinstance(gate, type)]
    classes = reversed(network.__mro__) if isinstance(network, type) else [network]
    return argument_docs(*gates, models.Excitation, HeadOptions, StagedGateOptions, *classes)


class SEResNetModule(FamilyModule):
    """SE-ResNet of 18 to 152 layers, of 20 to 164 layers for small images, or of custom stages."""

    network = models.SEResNet


class SEResNeXtModule(FamilyModule):
    """SE-ResNeXt of 50, 101 or 152 layers, of 29 layers for small images, or of custom stages."""

    network = models.SEResNeXt


class SENet154Module(FamilyModule):
    """SENet-154."""

    network = models.SENet154


class SEPreActResNetModule(FamilyModule):
    """Pre-activation SE-ResNet of 18 to 152 layers, or of 20 to 164 layers for small images."""

    network = models.SEPreActResNet


class SEWideResNetModule(FamilyModule):
    """SE-WRN for small images, of any depth 6n + 4 and any width factor."""

    network = models.SEWideResNet


class SEShakeShakeModule(FamilyModule):
    """SE-Shake-Shake for small images."""

    network = models.SEShakeShake


class SEDenseNetModule(FamilyModule):
    """SE-DenseNet of 121 to 264 layers, and for small images of any (L, k)."""

    network = models.SEDenseNet


class SEInceptionV3Module(FamilyModule):
    """SE-Inception-v3."""

    network = models.SEInceptionV3


class SEInceptionResNetV2Module(FamilyModule):
    """SE-Inception-ResNet-v2."""

    network = models.SEInceptionResNetV2


class SEBNInceptionModule(FamilyModule):
    """SE-BN-Inception."""

    network = models.SEBNInception


class SEVGG16BNModule(FamilyModule):
    """SE-VGG-16 with batch normalization."""

    network = models.SEVGG16BN


class SEMobileNetModule(FamilyModule):
    """SE-MobileNet of any width."""

    network = models.SEMobileNet


class SEShuffleNetModule(FamilyModule):
    """SE-ShuffleNet."""

    network = models.SEShuffleNet


class SESimpleModule(FamilyModule):
    """The smallest SE network for MNIST, with a single gate."""

    network = models.SESimple


class SENestedModule(FamilyModule):
    """SE network for MNIST with gates on whole residual units."""

    network = models.SENested
