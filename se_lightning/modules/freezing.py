"""Freezing parts of a network."""

import warnings

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from se_lightning.arguments import one_of
from se_lightning.models import find_gates
from se_lightning.models.weights.structure import classifier_path

__all__ = ["FREEZES", "freeze", "hold_statistics", "spare_classifier"]

FREEZES = ("backbone", "norms", "all_but_gates")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def freeze(network: nn.Module, what: str) -> None:
    """Exclude parameters from training.

    Args:
        network: Any network.
        what: ``"backbone"``: all but the classifier; ``"norms"``; ``"all_but_gates"``: all but
            the squeeze-and-excitation modules, including the classifier.

    Raises:
        ValueError: If ``what`` is unknown, or nothing is left to train.
    """
    one_of("freeze", what, FREEZES)
    if what == "norms":
        for module in network.modules():
            if isinstance(module, _NORMS):
                module.requires_grad_(False)
        return
    trained = list(find_gates(network)) if what == "all_but_gates" else [classifier_path(network)]
    network.requires_grad_(False)
    for path in filter(None, trained):
        network.get_submodule(path).requires_grad_(True)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"`freeze` (={what!r}) leaves nothing to train: the network has no "
            f"{'gates' if what == 'all_but_gates' else 'classifier'}."
        )


def spare_classifier(network: nn.Module) -> None:
    """Train the classifier if a finetuning callback froze it with everything else.

    Lightning's BackboneFinetuning freezes all of ``module.backbone``, perhaps except norms; here,
    that includes the classifier.
    """
    path = classifier_path(network)
    if path and not any(p.requires_grad and p.ndim > 1 for p in network.parameters()):
        network.get_submodule(path).requires_grad_(True)
        # Said of the classifier when the rest is unfrozen.
        warnings.filterwarnings("ignore", "The provided params to be frozen already exist within")


def hold_statistics(network: nn.Module) -> None:
    """Make the batch norms use and keep their running statistics."""
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.eval()
