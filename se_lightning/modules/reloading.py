"""Messages about checkpoints that do not fit the options with which they are loaded."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from se_lightning.models.weights.safe_files import read_file
from se_lightning.models.weights.structure import classifier_path, within
from se_lightning.modules.compiled import plain

__all__ = ["explain_mismatch", "explained", "with_own_classifier"]

# Arguments of Lightning's load_from_checkpoint.
_LIGHTNINGS = ("map_location", "hparams_file", "strict", "weights_only")

# Options with which `weights=` loads all but what they change.
_CONVERTIBLE = {"num_classes", "in_channels"}


def with_own_classifier(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with the module's own classifier if the shapes differ.

    Args:
        state: State dict of the module.
        module: A module with a ``backbone``.
    """
    head = f"backbone.{classifier_path(plain(module.backbone))}"  # type: ignore[arg-type]
    own = module.state_dict()
    other = [
        key
        for key, tensor in state.items()
        if within(key, head) and key in own and tensor.shape != own[key].shape
    ]
    if other:
        warnings.warn(
            f"The checkpoint's classifier is left out, because its {other[0]} is "
            f"{tuple(state[other[0]].shape)} and the module's {tuple(own[other[0]].shape)}; the "
            "module's keeps its initial weights.",
            stacklevel=3,
        )
    return {key: own[key] if key in other else tensor for key, tensor in state.items()}


@contextmanager
def explained(kind: type, path: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Explain errors while a checkpoint is loaded; see :func:`explain_mismatch`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        changed = {k: v for k, v in options.items() if k not in _LIGHTNINGS}
        is_file = isinstance(path, str | Path) and Path(path).is_file()
        words = explain_mismatch(error, kind, Path(path), changed) if is_file else None
        if words is None:
            raise
        raise words from error


def explain_mismatch(
    error: Exception, kind: type, path: Path, options: Mapping[str, Any]
) -> ValueError | None:
    """Return an error that names the options with which a checkpoint does not load.

    None if the error has another reason and speaks for itself.

    Args:
        error: What the constructor raised, or torch, with a line per differing parameter.
        kind: Class of the module.
        path: The checkpoint.
        options: Options given in addition to the checkpoint's.
    """
    try:
        content = read_file(path)
    except ValueError:
        return None
    saved = content.get("hyper_parameters", {})
    writer = content.get("se_lightning", {}).get("module", kind.__name__)
    if writer != kind.__name__:
        return ValueError(
            f"{path} was written by {writer}, and not by {kind.__name__}: load it with "
            f"{writer}.load_from_checkpoint."
        )
    if not isinstance(error, RuntimeError):
        return None
    given = {k: v for k, v in options.items() if k not in saved or saved[k] != v}
    given.pop("backbone", None)
    if not given:
        lines = [line.strip() for line in str(error).splitlines()[1:2]]
        return ValueError(f"{path} does not fit this {kind.__name__}: {' '.join(lines)}")
    here = ", ".join(f"{name}={value!r}" for name, value in given.items())
    there = ", ".join(f"{name}={saved.get(name, 'its default')!r}" for name in given)
    return ValueError(
        f"{path} cannot be loaded with {here}: its network has {there}. Leave out "
        f"{', '.join(f'`{name}`' for name in given)} to rebuild the network as it was trained"
        f"{_other_way(kind, path, given, here, saved)}."
    )


def _other_way(
    kind: type, path: Path, given: Mapping[str, Any], here: str, saved: Mapping[str, Any]
) -> str:
    """Return how a network with the given options gets the checkpoint's weights, if it can."""
    colors = "in_channels" not in given or saved.get("in_channels", 3) == 3
    if given.keys() <= _CONVERTIBLE and colors:
        what = "its first convolution is converted" if "in_channels" in given else ""
        head = "its classifier is left out" if "num_classes" in given else ""
        parts = " and ".join(filter(None, (what, head)))
        return (
            f", or start a new network from its weights: {kind.__name__}(..., {here}, "
            f"weights={str(path)!r}); {parts}"
        )
    return f"; a network with {here} has other weights and must be trained by itself"
