"""Selection of classes by label or by name."""

import difflib
from collections.abc import Sequence

__all__ = ["PAPERS_CLASSES", "choose_classes", "evenly"]

# The classes of the paper's Figure 6. Its "plane" is ImageNet's "airliner".
PAPERS_CLASSES = {1: "goldfish", 254: "pug", 404: "plane", 972: "cliff"}


def evenly(total: int, most: int) -> list[int]:
    """Return up to ``most`` evenly spaced indices below ``total``, from the first to the last.

    Example:
        >>> evenly(9, 3), evenly(2, 6)
        ([0, 4, 8], [0, 1])
    """
    count = min(most, total)
    return [round(k * (total - 1) / max(count - 1, 1)) for k in range(count)]


def choose_classes(
    classes: Sequence[int | str] | int | None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[int, str]:
    """Return the names of the chosen classes by label.

    Args:
        classes: Labels or names, or a number of evenly spaced classes. None selects goldfish, pug,
            plane and cliff if there are 1000 classes (as in ImageNet), else the first four.
        num_classes: Number of classes, if known.
        class_names: Names of the classes. None uses the labels as names.

    Raises:
        ValueError: If a class does not exist or is listed twice.

    Example:
        >>> choose_classes(["cat", 0], class_names=["ant", "cat", "dog"])
        {1: 'cat', 0: 'ant'}
        >>> choose_classes(3, num_classes=9)
        {0: '0', 4: '4', 8: '8'}
    """
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    if classes is None:
        if num_classes == 1000:
            return dict(PAPERS_CLASSES)
        classes = list(range(4 if num_classes is None else min(4, num_classes)))
    elif isinstance(classes, int):
        classes = _spread(classes, num_classes)
    labels = [_label(each, num_classes, class_names) for each in classes]
    if len(set(labels)) < len(labels):
        raise ValueError(f"`classes` (={list(classes)}) lists a class twice.")
    return {label: class_names[label] if class_names else str(label) for label in labels}


def _spread(count: int, num_classes: int | None) -> list[int]:
    if count < 1 or num_classes is None:
        raise ValueError(
            f"`classes` (={count}) must be at least 1, and the data set must define "
            "`num_classes`. Otherwise pass a list of labels."
        )
    return evenly(num_classes, count)


def _label(given: int | str, num_classes: int | None, names: Sequence[str] | None) -> int:
    if isinstance(given, str):
        if names is None:
            raise ValueError(
                f"`classes`: got the name {given!r}, but the data set has no class names. Pass "
                "labels."
            )
        if given not in names:
            near = difflib.get_close_matches(given, names, n=3) or list(names[:3])
            raise ValueError(
                f"`classes`: no class {given!r} among the {len(names)}. "
                f"Closest names: {', '.join(near)}."
            )
        return list(names).index(given)
    if given < 0 or (num_classes is not None and given >= num_classes):
        labels = "start at 0" if num_classes is None else f"are 0 to {num_classes - 1}"
        raise ValueError(f"`classes`: no class {given}. Labels {labels}.")
    return given
