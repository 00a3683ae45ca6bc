"""LightningModules of other libraries' networks, with gates put into them."""

import difflib
from collections.abc import Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from se_lightning.models import add_excitation
from se_lightning.models.surgery.insert import InsertedGateOptions, inserted_excitation
from se_lightning.modules.classifier import ImageClassifier, TrainingOptions
from se_lightning.modules.options import split

__all__ = ["TimmModule", "TorchvisionModule"]


class AddedOptions(InsertedGateOptions, TrainingOptions, total=False):
    """Those of gates that are put into a network, and the training's."""


class TorchvisionModule(ImageClassifier):
    """Any of torchvision's classification networks, plain or with gates put into it.

    Args:
        name: as in ``torchvision.models.list_models()``.
        num_classes: K, at least 2.
        in_channels: channels of the images; other than 3 replaces the first convolution.
        add_gates: where to put gates: ``"residual"``, ``"stages"``, or a pattern over the
            submodules' paths; see :func:`se_lightning.models.add_excitation`. None for none.
        **options: the gates' (ratio, gate, squeeze, merge, se_bias, divisor) and the training's
            (see :class:`ImageClassifier`). ``weights`` may also be the name of torchvision's own:
            ``"DEFAULT"``, ``"IMAGENET1K_V2"``.

    Raises:
        ValueError: naming the argument that does not fit.

    Example:
        >>> module = TorchvisionModule("resnet18", num_classes=5, add_gates="residual")
        >>> module.backbone.layer1[0].bn2.se.fc1.out_channels
        4
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        add_gates: str | None = None,
        **options: Unpack[AddedOptions],
    ) -> None:
        import torchvision

        _known(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
        training, gates = split(options)
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, num_classes=num_classes, **more)
        if in_channels != 3:
            _replace_first_convolution(network, in_channels)
        network = _gated(network, add_gates, gates)
        published = torchvision.models.get_model_weights(name).__members__
        weights = training.get("weights")
        if isinstance(weights, str) and weights in published:
            training["weights"] = _download(published[weights])
        super().__init__(network, num_classes, **training)


class TimmModule(ImageClassifier):
    """Any of timm's networks, as it is or with gates put into it. Needs ``se-lightning[timm]``.

    Args:
        name: as in ``timm.list_models()``.
        num_classes: K, at least 2.
        in_channels: channels of the images.
        add_gates: as in :class:`TorchvisionModule`.
        **options: as in :class:`TorchvisionModule`; timm's own weights are on the Hugging Face
            hub: ``weights="timm/resnet50.a1_in1k"``.

    Raises:
        ValueError: naming the argument that does not fit, or if timm is not installed.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        add_gates: str | None = None,
        **options: Unpack[AddedOptions],
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise ValueError(
                'This network is of timm, which is not installed: pip install "se-lightning[timm]".'
            ) from error
        _known(name, timm.list_models(), "timm")
        training, gates = split(options)
        network = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        super().__init__(_gated(network, add_gates, gates), num_classes, **training)


def _known(name: object, names: Sequence[str], library: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3)
        hint = f"Nearest: {', '.join(near)}." if near else f"{library} has {len(names)} others."
        raise ValueError(f"`name` (={name!r}) must be one of {library}'s networks. {hint}")


def _gated(network: nn.Module, where: str | None, gates: Any) -> nn.Module:
    inserted_excitation(gates)  # checks them, even where none is put in
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
            f"{weights} could not be fetched: {error}. Where there is a network download "
            f"{weights.url}, bring the file here, and give its path: weights=FILE."
        ) from error
