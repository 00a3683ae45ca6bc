"""Gates that were folded away: their replacements, and their record in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from se_lightning.models.layers.find import ExcitationParts, find_excitations

__all__ = ["ChannelScale", "folded", "gated_channels", "put_in_place", "repeat_folds"]


class ChannelScale(nn.Module):
    """Multiplies each channel by a constant; replaces a gate that never varied.

    Args:
        scale: Constants, (C,).

    Shape:
        (N, C, H, W) to the same.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * self.scale.to(x.dtype).view(-1, 1, 1)


def gated_channels(parts: ExcitationParts) -> int:
    """Return the number of channels that the module rescales."""
    if parts.reduce is None and parts.width is None:
        return parts.expand.in_channels  # type: ignore[return-value]
    return parts.channels


def put_in_place(model: nn.Module, path: str, scale: Tensor | None) -> None:
    """Replace a gate with a scale, or with an identity if ``scale`` is None."""
    old: Any = model.get_submodule(path)
    new: Any = nn.Identity() if scale is None else ChannelScale(scale)
    new.folded = "identity" if scale is None else "scale"
    new._forward_hooks.update(old._forward_hooks)  # a shortcut around the gate
    if hasattr(old, "insertion"):
        new.insertion = old.insertion  # add_excitation's hook still calls it
    model.set_submodule(path, new.train(old.training))


def folded(model: nn.Module) -> dict[str, str]:
    """Return the replacements of folded gates, ``identity`` or ``scale``, by path."""
    return {
        path: module.folded
        for path, module in model.named_modules()
        if isinstance(getattr(module, "folded", None), str)
    }


def repeat_folds(model: nn.Module, wanted: Mapping[str, str]) -> None:
    """Fold the gates that :func:`folded` returned for another network; weights are loaded later.

    Raises:
        ValueError: If one of these paths is not a gate of the network.
    """
    there, gates = folded(model), find_excitations(model)
    for path, kind in wanted.items():
        if there.get(path) == kind:
            continue
        if path not in gates:
            raise ValueError(
                f"`{path}` is a folded gate in the checkpoint, but not a gate of this network."
            )
        parts = gates[path]
        like = parts.expand.weight
        scale = torch.ones(gated_channels(parts), device=like.device)  # type: ignore[arg-type]
        put_in_place(model, path, None if kind == "identity" else scale)
