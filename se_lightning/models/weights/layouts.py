"""Layouts of state dicts: parameter names of other libraries for the same networks."""

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["LAYOUTS", "Layout", "recognise", "translate"]


class Layout(NamedTuple):
    """Parameter names of another library: a pattern that identifies it, and the renames."""

    name: str
    mark: str
    renames: tuple[tuple[str, str], ...] = ()
    caffe: bool = False  # of the paper's Caffe release, with other strides and pool


_HEAD = "<head>"  # placeholder for the classifier's name in the network
_CAFFE = ((r"\.se_module\.", ".se."), (r"^last_linear\.", f"{_HEAD}."))
_DEEP_STEM = (
    (r"^layer0\.conv1\.", "conv1.0."),
    (r"^layer0\.bn1\.", "conv1.1."),
    (r"^layer0\.conv2\.", "conv1.3."),
    (r"^layer0\.bn2\.", "conv1.4."),
    (r"^layer0\.conv3\.", "conv1.6."),
    (r"^layer0\.bn3\.", "bn1."),
)
# The first layout whose mark is found applies.
LAYOUTS = (
    Layout("Cadene's, timm's legacy", r"^layer0\.conv2\.", (*_DEEP_STEM, *_CAFFE), caffe=True),
    Layout("Cadene's, timm's legacy", r"^layer0\.", ((r"^layer0\.", ""), *_CAFFE), caffe=True),
    Layout("Cadene's of a plain network", r"^last_linear\.", _CAFFE),
    Layout(
        "timm's of VGG",
        r"^pre_logits\.fc1\.",
        (
            (r"^pre_logits\.fc1\.", "classifier.0."),
            (r"^pre_logits\.fc2\.", "classifier.3."),
            (r"^head\.fc\.", f"{_HEAD}."),
        ),
    ),
    Layout(
        "mmpretrain's",
        r"^head\.fc\.|\.se_layer\.conv1\.conv\.",
        (
            (r"^backbone\.", ""),
            (r"\.se_layer\.conv([12])\.conv\.", r".se.fc\1."),
            (r"^head\.fc\.", f"{_HEAD}."),
        ),
    ),
    Layout(
        "moskomule's",
        r"\.se\.fc\.[02]\.",
        ((r"\.se\.fc\.0\.", ".se.fc1."), (r"\.se\.fc\.2\.", ".se.fc2.")),
    ),
    # The files of torchvision's DenseNets are older than its classes.
    Layout(
        "torchvision's",
        r"denselayer\d+\.(norm|conv)\.[12]\.",
        ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    ),
    Layout("timm's", r"\.se\.fc[12]\."),
    Layout("torchvision's", r""),
)


def recognise(names: Iterable[str]) -> Layout:
    """Return the layout of the names of a state dict.

    Example:
        >>> recognise(["layer0.conv1.weight", "layer1.0.se_module.fc1.weight"]).name
        "Cadene's, timm's legacy"
    """
    names = list(names)
    return next(one for one in LAYOUTS if any(re.search(one.mark, name) for name in names))


def translate(name: str, layout: Layout, head: str) -> str:
    """Return this package's name of a parameter; ``head`` is the classifier's name.

    Example:
        >>> translate("last_linear.bias", recognise(["last_linear.bias"]), head="fc")
        'fc.bias'
    """
    for pattern, replacement in layout.renames:
        name = re.sub(pattern, replacement.replace(_HEAD, head), name)
    return name
