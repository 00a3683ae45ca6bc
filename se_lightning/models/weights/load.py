"""Loading of weights from published files and from checkpoints of this package."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_lightning.models.layers.network import ImageNetwork
from se_lightning.models.surgery.folded import folded
from se_lightning.models.weights import hub
from se_lightning.models.weights.layouts import recognise, translate
from se_lightning.models.weights.normalization import Normalization, expected_normalization
from se_lightning.models.weights.safe_files import read_file
from se_lightning.models.weights.state_dicts import find_state_dict, unwrapped
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
        repeated: Loaded weight of the first convolution, repeated and scaled for a network that
            takes images of another number of channels.
        zeroed: Biases of gates that were set to zero because the file's gates have none.
        kept: Tensors of the network that are absent from the file.
        left_out: Tensors of the file that were not loaded, with their shapes.
        normalization: Mean and deviation with which the weights expect images; None if unknown.
    """

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    summed: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, ...]] = field(default_factory=dict)
    normalization: Normalization | None = None

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
        if self.repeated:
            parts.append(f"the colors of {self.repeated[0]} repeated and scaled")
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
    it. A network for gray images takes the sum of the first convolution's weights over the colors;
    one for 2, 4 or more channels takes them in turn, times 3 / channels, as timm does.

    A file may hold more than weights, such as the arguments of timm's ``train.py`` or the objects
    that a LightningModule saved. None of their code runs, and a file that calls a function is
    refused.

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
    name, content, config = _read(source)
    about = _about(content)
    there = about.get("structure")
    _check_folds(model, about.get("folded"), name)
    state, beside = unwrapped(find_state_dict(content, name, use_ema=use_ema), model)
    layout, head = recognise(state), classifier_path(model)
    names = {key: translate(key, layout, head) for key in state}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"{name} mixes layouts: two of its names are the same in {layout.name} layout."
        )
    renamed = {ours: theirs for theirs, ours in names.items() if ours != theirs}
    report = LoadReport(name, "se_lightning's" if there else layout.name, renamed=renamed)
    state = {names[key]: tensor for key, tensor in state.items()}
    fitted = _fit(model, state, report, {names[key] for key in beside})
    gated = any(map(of_gate, state))
    if there is not None:
        adapted = (key.rpartition(".")[0] for key in (*report.summed, *report.repeated))
        others = {head, *adapted}
        check_structure(model, there, name, gated=gated, others=others)
    elif isinstance(model, ImageNetwork):
        check_variant(model, layout, state, f"{name} ({layout.name} layout)", gated=gated)
    model.load_state_dict(fitted, strict=True)
    if not about:
        report.normalization = expected_normalization(model, state, head, config)
    return report


def _about(content: Any) -> Mapping[str, Any]:
    """Return what a checkpoint of this package says of its network."""
    about = content.get("se_lightning") if isinstance(content, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def _check_folds(model: nn.Module, there: Any, name: str) -> None:
    if there and there != folded(model):
        raise ValueError(
            f"{name} has {len(there)} gates folded away: load the network with the module's "
            "load_from_checkpoint, or use the checkpoint from before task=fold."
        )


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Return name and content of the weights, and their description on the hub."""
    if isinstance(source, Mapping):
        return "The state dict", source, {}
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        return name, read_file(path, weights=True), {}
    if path.is_dir():
        raise FileNotFoundError(f"`weights` (={name}) is a folder; pass the path of a file in it.")
    if hub.NAME.fullmatch(name) and path.suffix.lower() not in _SUFFIXES:
        return name, read_file(hub.fetch(name), weights=True), hub.fetch_config(name)
    raise FileNotFoundError(
        f"`weights` (={name}) is not a file. Pass the path of one (.pth, .safetensors, .ckpt), or "
        "a name on the Hugging Face hub such as timm/seresnet50.a1_in1k."
    )


_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")


def _fit(
    model: nn.Module, state: Mapping[str, Tensor], report: LoadReport, beside: Collection[str]
) -> dict[str, Tensor]:
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
            tensor = _recolored(state[key], own)
            changed = report.summed if own.shape[1] == 1 else report.repeated
            changed += [] if tensor is None else [key]
        optional = within(key, head) or within(key, "AuxLogits")
        if tensor is not None:
            report.loaded.append(key)
            if state[key].shape != own.shape and key not in (*report.summed, *report.repeated):
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
        if within(key, head) or within(key, "AuxLogits") or key in beside:
            report.left_out[key] = tuple(state[key].shape)
        elif not key.endswith("num_batches_tracked"):
            wrong[key] = _EXTRA
    report.renamed = {key: old for key, old in report.renamed.items() if key in report.loaded}
    if wrong:
        key = min(wrong, key=list({**fitted, **state}).index)
        channels = f" Or set in_channels={state[first].shape[1]}." if list(wrong) == [first] else ""
        raise ValueError(
            f"{report.source} ({report.layout} layout) does not match this model: {len(wrong)} "
            f"parameters differ, the first is {key}: {wrong[key]}.{_hint(wrong)}{channels}"
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


def _recolored(tensor: Tensor, own: Tensor) -> Tensor | None:
    """Return a first convolution's weight for another number of channels than red, green, blue.

    For one channel it is the sum, which gives the outputs of the gray image in all three colors;
    otherwise the colors in turn, scaled to keep the size of the outputs: timm's adapt_input_conv.
    """
    channels = own.shape[1]
    if tensor.shape[1:2] != (3,) or (len(tensor), channels, *tensor.shape[2:]) != own.shape:
        return None
    if channels == 1:
        return tensor.float().sum(1, keepdim=True).to(own)
    turns = torch.arange(channels) % 3
    return (tensor.float()[:, turns] * (3 / channels)).to(own)


def _kind(tensor: Tensor, other: Tensor) -> str:
    same = tensor.shape == other.shape
    return f"{tuple(tensor.shape)}" + (f" of {tensor.dtype}" if same else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
