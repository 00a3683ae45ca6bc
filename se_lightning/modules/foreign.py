"""LightningModules of other libraries' networks, optionally with gates inserted."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from se_lightning.models import add_excitation
from se_lightning.models.surgery.insert import InsertedGateOptions, inserted_excitation
from se_lightning.modules.families import FamilyModule

__all__ = ["TimmModule", "TorchvisionModule"]


def _torchvision_network(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    add_gates: str | None = None,
    **gates: Unpack[InsertedGateOptions],
) -> nn.Module:
    import torchvision

    _check_name(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, num_classes=num_classes, **more)
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    return _gated(network, add_gates, gates)


def _timm_network(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    add_gates: str | None = None,
    **gates: Unpack[InsertedGateOptions],
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError('This network needs timm: pip install "se-lightning[timm]".') from error
    _check_name(name, timm.list_models(), "timm")
    network = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
    return _gated(network, add_gates, gates)


class TorchvisionModule(FamilyModule):
    """A classification network of torchvision, plain or with inserted gates.

    Args:
        name: A name in ``torchvision.models.list_models()``.
        num_classes: Number of classes; 1 stands for one logit.
        in_channels: Channels of the images; a number other than 3 replaces the first convolution.
        add_gates: Where to insert gates: ``"residual"``, ``"stages"``, or a glob over module
            paths; see :func:`se_lightning.models.add_excitation`. None inserts none.
        **options: Options of the gates (ratio, gate, squeeze, merge, se_bias, divisor) and of the
            training (see :class:`ImageClassifier`). ``weights`` may also name torchvision's own
            weights: ``"DEFAULT"``, ``"IMAGENET1K_V2"``.

    Raises:
        ValueError: If the name or an option is unknown, or its value is refused.

    Example:
        >>> module = TorchvisionModule("resnet18", num_classes=5, add_gates="residual")
        >>> module.backbone.layer1[0].bn2.se.fc1.out_channels
        4
    """

    network = staticmethod(_torchvision_network)

    def _training(self, options: Mapping[str, Any]) -> dict[str, Any]:
        import torchvision

        training = super()._training(options)
        published = torchvision.models.get_model_weights(options["name"]).__members__
        weights = training.get("weights")
        if isinstance(weights, str) and weights in published:
            training["weights"] = _download(published[weights])
        return training


class TimmModule(FamilyModule):
    """A network of timm, plain or with inserted gates. Needs ``se-lightning[timm]``.

    Args:
        name: A name in ``timm.list_models()``.
        num_classes: Number of classes; 1 stands for one logit.
        in_channels: Channels of the images.
        add_gates: Where to insert gates; see :class:`TorchvisionModule`.
        **options: As in :class:`TorchvisionModule`. timm's weights are on the Hugging Face hub:
            ``weights="timm/resnet50.a1_in1k"``.

    Raises:
        ValueError: If timm is not installed, the name or an option is unknown, or its value is
            refused.
    """

    network = staticmethod(_timm_network)


def _check_name(name: object, names: Sequence[str], library: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3)
        hint = f"Nearest: {', '.join(near)}." if near else f"{library} has {len(names)} of them."
        raise ValueError(f"`name` (={name!r}) must be one of {library}'s networks. {hint}")


def _gated(network: nn.Module, where: str | None, gates: InsertedGateOptions) -> nn.Module:
    inserted_excitation(gates)  # checks them, even if no gate is inserted
    return network if where is None else add_excitation(network, where, **gates)


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    path, old = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
    owner, _, name = path.rpartition(".")
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(network.get_submodule(owner), name, new)


def _download(weights: Any) -> dict[str, Tensor]:
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{weights} could not be downloaded: {error}. Download {weights.url} on a machine with "
            "internet access, copy the file here, and pass its path: weights=FILE."
        ) from error
