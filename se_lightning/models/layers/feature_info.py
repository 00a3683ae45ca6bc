"""The feature maps of a network, with the interface of timm's."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["FeatureInfo", "FeatureMap"]

# timm's keys, and the attributes here.
_KEYS = {"num_chs": "channels", "reduction": "reduction", "module": "module"}


class _Map(NamedTuple):
    module: str
    channels: int
    reduction: int


class FeatureMap(_Map):
    """A feature map of a network: the module that returns it, its channels and its stride.

    As in timm, it is also a mapping with the keys ``num_chs``, ``reduction``, ``module``, and
    ``index`` in a list of maps.

    Example:
        >>> info = FeatureMap("layer3", 256, 16)
        >>> info.channels, info["num_chs"], dict(info)
        (256, 256, {'num_chs': 256, 'reduction': 16, 'module': 'layer3'})
    """

    def keys(self) -> list[str]:
        """Return timm's names of the fields."""
        return [*_KEYS, *vars(self)]

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key in _KEYS:
            return getattr(self, _KEYS[key])
        return vars(self)[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys() or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field by timm's name."""
        return self[key] if key in self.keys() else default

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return a field by timm's name, after adding it if there is none."""
        if key not in self.keys():
            vars(self)[key] = default
        return self[key]

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield timm's names of the fields, and their values."""
        return ((key, self[key]) for key in self.keys())


Index = int | Sequence[int] | None


class FeatureInfo(list[FeatureMap]):
    """The feature maps of a network, from the images on; a list with the methods of timm's.

    ``channels``, ``reduction`` and ``module_name`` return the values of all maps, of a list of
    indices, or the value of one index.

    Example:
        >>> from se_lightning.models import se_resnet18
        >>> info = se_resnet18().feature_info
        >>> info.channels(), info.reduction([0, -1]), info.module_name(1)
        ([64, 64, 128, 256, 512], [2, 32], 'layer1')
    """

    def append(self, info: FeatureMap) -> None:
        """Add a map, and number it."""
        info.setdefault("index", len(self))
        super().append(info)

    def select(self, indices: Index = None) -> list[int]:
        """Return indices from 0: of the last n maps for an integer n, of all for None.

        Raises:
            ValueError: If an index is out of range.
        """
        count = len(self)
        last = count if indices is None else indices
        chosen = range(count - last, count) if isinstance(last, int) else last
        lowest = 0 if isinstance(last, int) else -count
        if not chosen or any(not lowest <= index < count for index in chosen):
            raise ValueError(f"`indices` (={indices!r}) must select from {count} feature maps.")
        return [index % count for index in chosen]

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Indices of all maps."""
        return tuple(range(len(self)))

    def get(self, key: str, idx: Index = None) -> Any:
        """Return a field of the maps by timm's name."""
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: Index = None) -> Any:
        """Return the maps as dicts, with all fields or some."""
        if isinstance(idx, int):
            return {key: self[idx][key] for key in keys or self[idx].keys()}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: Index = None) -> Any:
        """Return the channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: Index = None) -> Any:
        """Return the strides of the maps."""
        return self.get("reduction", idx)

    def module_name(self, idx: Index = None) -> Any:
        """Return the paths of the modules that return the maps."""
        return self.get("module", idx)
