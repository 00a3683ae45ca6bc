"""Loading of weights from published files and from checkpoints of this package."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.surgery.folded import folded
from se_lightning.models.weights import hub
from se_lightning.models.weights.layouts import recognise, translate
from se_lightning.models.weights.safe_files import read_file
from se_lightning.models.weights.structure import (
    check_structure,
    check_variant,
    classifier_path,
    of_gate,
    within,
)

__all__ = ["LoadReport", "load_weights"]


@dataclass
class LoadReport:
    """Report on each tensor of a load; names are those of the network.

    Args:
        source: File, or name on the hub.
        layout: Library whose names the file has.
        loaded: Loaded tensors.
        renamed: Names in the file of the loaded tensors that were renamed.
        reshaped: Loaded weights of dense layers that were reshaped between 2-D and 4-D.
        summed: Loaded weight of the first convolution, summed over red, green and blue for a
            network that takes gray images.
        zeroed: Biases of gates that were set to zero because the file's gates have none.
        kept: Tensors of the network that are absent from the file.
        left_out: Tensors of the file that were not loaded, with their shapes.
    """

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    summed: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def fresh(self) -> set[str]:
        """Modules that kept their weights because the file's are absent or do not fit."""
        return {name.rpartition(".")[0] for name in (*self.kept, *self.left_out)}

    def __str__(self) -> str:
        parts = [f"{self.source}, {self.layout} layout: {len(self.loaded)} tensors loaded"]
        if self.renamed:
            parts.append(f"{len(self.renamed)} of them renamed")
        if self.reshaped:
            parts.append(f"{len(self.reshaped)} reshaped")
        if self.summed:
            parts.append(f"{self.summed[0]} summed over red, green and blue")
        if self.zeroed:
            parts.append(f"{len(self.zeroed)} biases of gates set to zero")
        if self.kept:
            parts.append(f"{len(self.kept)} kept as they were ({_some(self.kept)})")
        if self.left_out:
            names = [f"{name} {shape}" for name, shape in self.left_out.items()]
            parts.append(f"{len(self.left_out)} left out ({_some(names)})")
        return "; ".join(parts)


def load_weights(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any], *, use_ema: bool = True
) -> LoadReport:
    """Load published weights, or a checkpoint of this package, into a network.

    The layout is recognized by the keys: that of timm (also its legacy networks), Cadene,
    mmpretrain, moskomule, torchvision (a plain network loads into its SE twin, whose gates stay
    unchanged) or this package. A classifier for another number of classes is left out. A network
    of the same shapes but with other strides or another squeeze is refused where the layout reveals
    it. A network for gray images takes the sum of the first convolution's weights over the colors.

    torchvision's Inception-v3 weights expect images normalized to mean and deviation 0.5.

    Args:
        model: A network of this package (or the LightningModule around it), or any other network
            with the names of the file.
        source: File of torch or safetensors, name on the Hugging Face hub
            (``timm/seresnet50.a1_in1k``), or state dict.
        use_ema: Load the averaged instead of the raw weights from a checkpoint that has both.

    Returns:
        Report of the tensors that were loaded, changed, kept and left out.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, contains code, belongs to another network or to another
            variant of this one, or cannot be downloaded. The network is then unchanged.

    Example:
        >>> from torchvision.models import resnet18
        >>> from se_lightning.models import se_resnet18
        >>> network = se_resnet18(num_classes=10)
        >>> report = load_weights(network, resnet18().state_dict())
        >>> len(report.loaded), sorted(report.left_out)
        (120, ['fc.bias', 'fc.weight'])
    """
    around: Any = model
    if isinstance(getattr(around, "backbone", None), ImageNetwork):
        model = around.backbone
    name, content = _read(source)
    state, there = _state_dict(content, name, use_ema)
    _check_folds(model, content, name)
    state = _unwrapped(state, model)
    layout, head = recognise(state), classifier_path(model)
    names = {key: translate(key, layout, head) for key in state}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"{name} mixes layouts: two of its names are the same in {layout.name} layout."
        )
    renamed = {ours: theirs for theirs, ours in names.items() if ours != theirs}
    report = LoadReport(name, "se_lightning's" if there else layout.name, renamed=renamed)
    state = {names[key]: tensor for key, tensor in state.items()}
    fitted = _fit(model, state, report)
    gated = any(map(of_gate, state))
    if there is not None:
        others = {head, *(key.rpartition(".")[0] for key in report.summed)}
        check_structure(model, there, name, gated=gated, others=others)
    elif isinstance(model, ImageNetwork):
        check_variant(model, layout, state, f"{name} ({layout.name} layout)", gated=gated)
    model.load_state_dict(fitted, strict=True)
    return report


def _check_folds(model: nn.Module, content: Any, name: str) -> None:
    about = content.get("se_lightning") if isinstance(content, Mapping) else None
    there = about.get("folded") if isinstance(about, Mapping) else None
    if there and there != folded(model):
        raise ValueError(
            f"{name} has {len(there)} gates folded away: load the network with the module's "
            "load_from_checkpoint, or use the checkpoint from before task=fold."
        )


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, Any]:
    if isinstance(source, Mapping):
        return "The state dict", source
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        return name, read_file(path)
    if path.is_dir():
        raise FileNotFoundError(f"`weights` (={name}) is a folder; pass the path of a file in it.")
    if hub.NAME.fullmatch(name) and path.suffix.lower() not in _SUFFIXES:
        return name, read_file(hub.fetch(name))
    raise FileNotFoundError(
        f"`weights` (={name}) is not a file. Pass the path of one (.pth, .safetensors, .ckpt), or "
        "a name on the Hugging Face hub such as timm/seresnet50.a1_in1k."
    )


_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
# Keys of the averaged and of the raw weights in checkpoints of training scripts.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")
_RAW = ("state_dict", "model")


def _state_dict(
    content: Any, name: str, use_ema: bool
) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Return the state dict of a checkpoint, and the structure if this package wrote it."""
    there = None
    if isinstance(content, Mapping):
        about = content.get("se_lightning")
        there = about.get("structure") if isinstance(about, Mapping) else None
        raw = () if use_ema else ("current_model_state",)  # Lightning's key, next to the average
        for key in (*raw, *(_AVERAGED if use_ema else ()), *_RAW):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    tensors = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not tensors or not content:
        raise ValueError(f"{name} contains no state dict, which maps names to tensors.")
    return {key.replace("_orig_mod.", ""): v for key, v in content.items()}, there


def _unwrapped(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers: ``module.``, ``backbone.``."""
    state.pop("n_averaged", None)  # of torch's AveragedModel
    children = dict(model.named_children())
    while True:
        first = {key.partition(".")[0] if "." in key else "" for key in state}
        if len(first) != 1 or "" in first or first & set(children):
            return state
        state = {key.partition(".")[2]: tensor for key, tensor in state.items()}


def _fit(model: nn.Module, state: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Return the network's complete state dict with the file's tensors, and fill the report.

    Raises:
        ValueError: If parameters are missing, left over, or of another shape.
    """
    head, gated = classifier_path(model), any(map(of_gate, state))
    fitted, wrong = {}, {}
    first = next((key for key, own in model.state_dict().items() if own.ndim == 4), "")
    for key, own in model.state_dict().items():
        tensor = None if key not in state else _shaped(state[key], own)
        if tensor is None and key == first and key in state:
            tensor = _grey(state[key], own)
            report.summed += [] if tensor is None else [key]
        optional = within(key, head) or within(key, "AuxLogits")
        if tensor is not None:
            report.loaded.append(key)
            if state[key].shape != own.shape and key not in report.summed:
                report.reshaped.append(key)
        elif key in state and (within(key, head) or within(key, "AuxLogits.fc")):
            report.left_out[key] = tuple(state[key].shape)
        elif key in state:
            theirs, ours = _kind(state[key], own), _kind(own, state[key])
            wrong[key] = f"{theirs} in the file and {ours} in the model"
        elif optional or (of_gate(key) and not gated):
            report.kept.append(key)
        elif key.endswith("num_batches_tracked"):  # absent before torch 0.4.1, and not needed
            pass
        elif of_gate(key) and key.endswith(".bias") and f"{key[:-4]}weight" in state:
            tensor = own.new_zeros(own.shape)
            report.zeroed.append(key)
        else:
            wrong[key] = "missing from the file"
        fitted[key] = own if tensor is None else tensor
    for key in state.keys() - fitted.keys():
        if within(key, head) or within(key, "AuxLogits"):
            report.left_out[key] = tuple(state[key].shape)
        elif not key.endswith("num_batches_tracked"):
            wrong[key] = _EXTRA
    report.renamed = {key: old for key, old in report.renamed.items() if key in report.loaded}
    if wrong:
        key = min(wrong, key=list({**fitted, **state}).index)
        raise ValueError(
            f"{report.source} ({report.layout} layout) does not match this model: {len(wrong)} "
            f"parameters differ, the first is {key}: {wrong[key]}.{_hint(wrong)}"
        )
    return fitted


_EXTRA = "missing from the model"


def _hint(wrong: Mapping[str, str]) -> str:
    """Return the option to set, if only the gates differ."""
    if not all(map(of_gate, wrong)):
        return ""
    if all(what == _EXTRA for what in wrong.values()):
        if all(key.endswith(".bias") for key in wrong):
            return " The file's gates have biases: set se_bias=True."
        return " The model has no gates there: set gate='channel', and all stages."
    return " Only the gates differ: set `ratio`, `divisor` (8 is timm's rounding) or `gate`."


def _shaped(tensor: Tensor, own: Tensor) -> Tensor | None:
    """Return a tensor in the shape of the network's; None if it does not fit.

    A dense layer fits a 1x1 convolution, and after flattening a convolution over the whole map.
    """
    sizes = tensor.shape, own.shape
    dense = {tensor.ndim, own.ndim} == {2, 4} and sizes[0][0] == sizes[1][0]
    if tensor.is_floating_point() != own.is_floating_point():
        return None
    if sizes[0] == sizes[1] or (dense and tensor.numel() == own.numel()):
        return tensor.reshape(own.shape).to(own)
    return None


def _grey(tensor: Tensor, own: Tensor) -> Tensor | None:
    """Return a first convolution's weight for gray images, which equal all three colors."""
    fits = tensor.shape[1:2] == (3,) and (own.shape[0], 1, *tensor.shape[2:]) == own.shape
    return tensor.sum(1, keepdim=True).to(own) if fits and len(tensor) == len(own) else None


def _kind(tensor: Tensor, other: Tensor) -> str:
    same = tensor.shape == other.shape
    return f"{tuple(tensor.shape)}" + (f" of {tensor.dtype}" if same else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
