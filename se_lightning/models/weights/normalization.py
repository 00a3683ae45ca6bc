"""The mean and deviation with which published weights expect their images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from se_lightning.models.layers.network import ImageNetwork

__all__ = ["Normalization", "expected_normalization"]


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = Normalization((0.5,) * 3, (0.5,) * 3)
# Networks whose published weights expect pixels in [-1, 1]: timm's inception_v3 (tv_in1k, tf_in1k),
# inception_resnet_v2.tf_in1k and mobilenetv1_100.ra4_e3600_r224_in1k (timm 1.0.31). torchvision's
# Inception-v3 and GoogLeNet convert their images themselves if `transform_input` is set.
_WITH_HALF = {"SEInceptionV3", "SEInceptionResNetV2", "SEMobileNet", "Inception3", "GoogLeNet"}


def expected_normalization(
    model: nn.Module, state: Mapping[str, Tensor], head: str, config: Mapping[str, Any]
) -> Normalization | None:
    """Return what weights expect, or None if that is not known.

    Args:
        model: The network they belong to.
        state: The weights, by the names of the network. Those with another number of classes than
            published ones are not published, so nothing is known of their images.
        head: Path of the classifier.
        config: The file next to the weights on the Hugging Face hub, in timm's form.
    """
    timms = getattr(model, "pretrained_cfg", None)
    timms = {} if isinstance(model, ImageNetwork) or not isinstance(timms, Mapping) else timms
    stated = config.get("pretrained_cfg", config)
    if "mean" in stated and "std" in stated:
        return Normalization(tuple(stated["mean"]), tuple(stated["std"]))
    weight = state.get(f"{head}.weight")
    if weight is None or len(weight) != timms.get("num_classes", 1000):
        return None
    if "mean" in timms and "std" in timms:
        return Normalization(tuple(timms["mean"]), tuple(timms["std"]))
    published = isinstance(model, ImageNetwork) or type(model).__module__.startswith("torchvision.")
    if not published:
        return None
    half = type(model).__name__ in _WITH_HALF and not getattr(model, "transform_input", False)
    return _HALF if half else _IMAGENET
