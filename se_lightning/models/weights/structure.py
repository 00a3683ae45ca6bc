"""Structure of a network beyond the shapes of its parameters: strides, squeezes, placements."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from se_lightning.models.layers.find import own_gates
from se_lightning.models.layers.gates import ACTIVATIONS
from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.layers.residual import ResidualUnit
from se_lightning.models.weights.layouts import Layout

__all__ = [
    "check_structure",
    "check_variant",
    "classifier_path",
    "of_gate",
    "structure",
    "within",
]


def structure(model: nn.Module) -> dict[str, str]:
    """Return each submodule's class and settings, by path.

    Example:
        >>> structure(nn.Sequential(nn.ReLU()))
        {'': 'Sequential()', '0': 'ReLU()'}
    """
    return {
        path: f"{module._get_name()}({module.extra_repr()})"
        for path, module in model.named_modules()
    }


def classifier_path(model: nn.Module) -> str:
    """Return the classifier's path: as the network or timm names it, else the last dense layer."""
    named = getattr(model, "classifier_name", None)
    named = named or (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    dense = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return named if isinstance(named, str) else (dense or [""])[-1]


def within(key: str, module: str) -> bool:
    """Return whether a parameter belongs to a module; never if the module's path is empty."""
    return bool(module) and key.startswith(f"{module}.")


def of_gate(key: str) -> bool:
    """Return whether a parameter or module belongs to a gate."""
    return "se" in key.split(".")


def check_structure(
    model: nn.Module,
    there: Mapping[str, str],
    name: str,
    *,
    gated: bool = True,
    others: Collection[str] = (),
) -> None:
    """Check that a network has the structure recorded in a checkpoint.

    Args:
        model: The network.
        there: Structure in the checkpoint.
        name: Name of the checkpoint, for messages.
        gated: Whether the checkpoint's network has gates; if not, gates are not compared.
        others: Paths of modules that may differ, such as the classifier.

    Raises:
        ValueError: If a module differs.
    """
    for path, ours in structure(model).items():
        theirs = there.get(path, ours)
        skipped = "Dropout" in ours or any(within(f"{path}.", other) for other in others)
        if not gated:  # gates may differ, and units print their placement
            leaf = next(model.get_submodule(path).children(), None) is None
            skipped |= not leaf or of_gate(path)
        if ours != theirs and not skipped:
            raise ValueError(
                f"{name} does not match this model, although all weights have the same shapes: "
                f"{path or 'the network'} is {theirs} in the checkpoint and {ours} in the model. "
                "Build the model as it was trained."
            )


def check_variant(
    model: ImageNetwork, layout: Layout, state: Mapping[str, Tensor], name: str, *, gated: bool
) -> None:
    """Check the options that a layout implies, where the shapes of the weights do not.

    Raises:
        ValueError: If the network was built with other options.
    """
    here = dict(model.variant)
    wanted: dict[str, Any] = {}
    if "stride_in" in here:
        bottleneck = "layer1.0.conv3.weight" in state
        ungrouped = bottleneck and (
            state["layer1.0.conv1.weight"].shape[0] == state["layer1.0.conv2.weight"].shape[1]
        )
        wanted["stride_in"] = "1x1" if layout.caffe and ungrouped else "3x3"
        wanted["relu_before_gate"] = layout.caffe and not bottleneck
        wanted["ceil_pool"] = layout.caffe
    if gated:
        here |= _gate_options(model)
        wanted |= {"squeeze": "avg", "gate_activation": "sigmoid", "placement": "standard"}
    differing = {o: value for o, value in wanted.items() if here.get(o, value) != value}
    if differing:
        options = ", ".join(f"{option}={value!r}" for option, value in differing.items())
        raise ValueError(
            f"{name} belongs to a variant of this network with weights of the same shapes: build "
            f"it with {options}. (To load weights that this network itself has saved, use its "
            "load_state_dict.)"
        )


def _gate_options(model: nn.Module) -> dict[str, Any]:
    """Return the gates' options that the parameters do not show; all gates share them."""
    options: dict[str, Any] = {"placement": "standard"}
    names: dict[Any, str] = {kind: name for name, kind in ACTIVATIONS.items()}
    for _, gate, parts in own_gates(model):
        if parts.reduce is not None:
            options["squeeze"] = getattr(gate, "squeeze", "avg")
            options["gate_activation"] = names.get(type(parts.gate), type(parts.gate).__name__)
    for module in model.modules():
        if isinstance(module, ResidualUnit) and not isinstance(module.se, nn.Identity):
            options["placement"] = module.placement
    return options
