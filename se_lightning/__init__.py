"""Squeeze-and-excitation networks on Lightning and Hydra, with their gates in plain sight.

The names below load on first use, so that ``--help`` need not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from se_lightning.callbacks import ExcitationHistogram
    from se_lightning.data import DigitsDataModule, FakeDataModule, MNISTDataModule
    from se_lightning.modules import (
        ImageClassifier,
        SEBNInceptionModule,
        SEDenseNetModule,
        SEInceptionResNetV2Module,
        SEInceptionV3Module,
        SEMobileNetModule,
        SENestedModule,
        SENet154Module,
        SEPreActResNetModule,
        SEResNetModule,
        SEResNeXtModule,
        SEShakeShakeModule,
        SEShuffleNetModule,
        SESimpleModule,
        SEVGG16BNModule,
        SEWideResNetModule,
        TimmModule,
        TorchvisionModule,
    )

__all__ = [
    "DigitsDataModule",
    "ExcitationHistogram",
    "FakeDataModule",
    "ImageClassifier",
    "MNISTDataModule",
    "SEBNInceptionModule",
    "SEDenseNetModule",
    "SEInceptionResNetV2Module",
    "SEInceptionV3Module",
    "SEMobileNetModule",
    "SENestedModule",
    "SENet154Module",
    "SEPreActResNetModule",
    "SEResNeXtModule",
    "SEResNetModule",
    "SEShakeShakeModule",
    "SEShuffleNetModule",
    "SESimpleModule",
    "SEVGG16BNModule",
    "SEWideResNetModule",
    "TimmModule",
    "TorchvisionModule",
]

_HOMES = dict.fromkeys(__all__, "modules") | {
    "DigitsDataModule": "data",
    "ExcitationHistogram": "callbacks",
    "FakeDataModule": "data",
    "MNISTDataModule": "data",
}

# In a checkout the configs lie beside the package and not in it: `se_lightning.conf` is found
# there where no installed copy is (a bare checkout, or `pip install .` shadowed by the folder).
_checkout = Path(__file__).resolve().parent.parent
if not (_checkout / "se_lightning" / "conf").is_dir() and (_checkout / "conf/train.yaml").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
