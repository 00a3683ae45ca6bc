"""Squeeze-and-excitation networks on PyTorch Lightning and Hydra.

The public names are those of :mod:`se_lightning.callbacks`, :mod:`se_lightning.data` and
:mod:`se_lightning.modules`. They load on first use, so ``--help`` does not wait for torch.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from se_lightning.callbacks import *  # noqa: F403
    from se_lightning.data import *  # noqa: F403
    from se_lightning.modules import *  # noqa: F403

_PACKAGES = ("callbacks", "data", "modules")

# The command lines of Lightning, which find a class by its name once it has been imported.
_COMMAND_LINES = ("pytorch_lightning.cli", "lightning.pytorch.cli")

# In a checkout, the configs are next to the package rather than in it: `se_lightning.conf` is
# found there if no copy is installed (a bare checkout, or `pip install .` shadowed by the folder).
_checkout = Path(__file__).resolve().parent.parent
if not (_checkout / "se_lightning" / "conf").is_dir() and (_checkout / "conf/train.yaml").is_file():
    __path__.append(str(_checkout))  # noqa: F405


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(each for part in _PACKAGES for each in _package(part).__all__)
    # Public names are classes; submodules must stay importable without torch.
    if name[:1].isupper():
        package = _package(_home(name))
        if name in package.__all__:
            return getattr(package, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])


def _home(name: str) -> str:
    """Return the package of a public name by its ending, so that only one is imported."""
    if name.endswith("DataModule"):
        return "data"
    return "modules" if name.endswith(("Module", "Classifier")) else "callbacks"


def _package(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


if any(name in sys.modules for name in _COMMAND_LINES):
    for _part in _PACKAGES:
        _package(_part)
