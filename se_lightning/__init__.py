"""Squeeze-and-excitation networks on Lightning and Hydra, with their gates in plain sight.

The names below load on first use, so that ``--help`` need not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from se_lightning.callbacks import (
        EMA,
        ClassSelectivity,
        ExactState,
        ExcitationCurves,
        ExcitationHistogram,
        GateDoctor,
        LastCheckpoint,
        NonFinite,
        NonFiniteError,
    )
    from se_lightning.data import (
        CIFARDataModule,
        DigitsDataModule,
        FakeDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
        MNISTDataModule,
    )
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
    "EMA",
    "CIFARDataModule",
    "ClassSelectivity",
    "DigitsDataModule",
    "ExactState",
    "ExcitationCurves",
    "ExcitationHistogram",
    "FakeDataModule",
    "GateDoctor",
    "ImageClassifier",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "LastCheckpoint",
    "MNISTDataModule",
    "NonFinite",
    "NonFiniteError",
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

_HOMES = dict.fromkeys(__all__, "modules") | dict.fromkeys(
    (
        "EMA",
        "ClassSelectivity",
        "ExactState",
        "ExcitationCurves",
        "ExcitationHistogram",
        "GateDoctor",
        "LastCheckpoint",
        "NonFinite",
        "NonFiniteError",
    ),
    "callbacks",
)
_HOMES |= {name: "data" for name in __all__ if name.endswith("DataModule")}

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
