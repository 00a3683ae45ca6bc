"""What the shapes of parameters do not tell of a network: strides, squeezes, places."""

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
    """Return each submodule's class and settings, by path: what its parameters' shapes hide.

    Example:
        >>> structure(nn.Sequential(nn.ReLU()))
        {'': 'Sequential()', '0': 'ReLU()'}
    """
    return {
        path: f"{type(module).__name__}({module.extra_repr()})"
        for path, module in model.named_modules()
    }


def classifier_path(model: nn.Module) -> str:
    """Return the classifier's path: as we or timm name it, or that of the last dense layer."""
    named = getattr(model, "classifier_name", None)
    named = named or (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    dense = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return named if isinstance(named, str) else (dense or [""])[-1]


def within(key: str, module: str) -> bool:
    """Tell whether a parameter is a module's; of none where the module's path is empty."""
    return bool(module) and key.startswith(f"{module}.")


def of_gate(key: str) -> bool:
    """Tell whether a parameter, or a module, is a gate's."""
    return "se" in key.split(".")


def check_structure(
    model: nn.Module,
    there: Mapping[str, str],
    name: str,
    *,
    gated: bool = True,
    others: Collection[str] = (),
) -> None:
    """Compare with the network that a checkpoint was written for.

    Args:
        model: the network here.
        there: the structure of the other.
        name: of the checkpoint, for messages.
        gated: False leaves gates out of the comparison: the other has none.
        others: paths of modules that may differ: a classifier of another size.

    Raises:
        ValueError: naming the first module that differs.
    """
    for path, ours in structure(model).items():
        theirs = there.get(path, ours)
        skipped = "Dropout" in ours or any(within(f"{path}.", other) for other in others)
        if not gated:  # then the gates may be anything, and the units say where they are
            leaf = next(model.get_submodule(path).children(), None) is None
            skipped |= not leaf or of_gate(path)
        if ours != theirs and not skipped:
            raise ValueError(
                f"{name} is of another network, though its weights have the same shapes: "
                f"{path or 'the whole'} is {theirs} there and {ours} here. Build the network as "
                "it was trained."
            )


def check_variant(
    model: ImageNetwork, layout: Layout, state: Mapping[str, Tensor], name: str, *, gated: bool
) -> None:
    """Compare with the network that a layout is known to be of, as far as shapes do not tell.

    Raises:
        ValueError: naming the options to build it with.
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
            f"{name} is of another variant of this network, with weights of the same shapes: "
            f"build it with {options}. (What this very network has saved is loaded by its "
            "load_state_dict.)"
        )


def _gate_options(model: nn.Module) -> dict[str, Any]:
    """Return the gates' options that their parameters do not show; all gates share them."""
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
