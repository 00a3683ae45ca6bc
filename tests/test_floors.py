"""The floors of docs/architecture.md: imports point down, or sideways within one folder."""

import ast
import shutil
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "se_lightning"
# Ground floor first. A room imports from the floors below it and from itself.
FLOORS = [
    {"arguments", "atomic", "lightning", "ranks", "tables"},
    {"models", "data", "loggers"},
    {"modules", "excitation"},
    {"callbacks", "checkpoint"},
    {"tasks"},
    {"cli"},
    {"__main__", "__init__"},
]
# On the same floor, one room may use the other.
BESIDE = {("modules", "excitation"), ("callbacks", "checkpoint")}
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
HYDRA = {"hydra", "omegaconf"}
NEVER = {
    "models": LIGHTNING | HYDRA | {"wandb", "torchmetrics", "se_lightning.lightning"},
    "modules": LIGHTNING | HYDRA | {"wandb"},
    "data": LIGHTNING | HYDRA | {"wandb"},
    "excitation": LIGHTNING | HYDRA | {"wandb"},
    "callbacks": LIGHTNING | HYDRA,
    "checkpoint": LIGHTNING | HYDRA,
    "loggers": LIGHTNING | HYDRA,
    "tasks": LIGHTNING | HYDRA,
    "cli": {"lightning"},
}


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(package: Path) -> list[str]:
    wrong = []
    rooms = set().union(*FLOORS)
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).parts[0].removesuffix(".py")
        if here == "__init__":
            continue  # the public names, imported on first use
        for name in imports(path):
            top, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if top == "se_lightning" and there in rooms and there != here:
                down = floor(there) < floor(here)
                never = f"{top}.{there}" in NEVER.get(here, ())
                forbidden = never or (not down and (here, there) not in BESIDE)
            else:
                forbidden = top in NEVER.get(here, ())
            if forbidden:
                wrong.append(f"{path.relative_to(package)} imports {name}")
    return wrong


def test_imports_point_down():
    assert wrong_imports(PACKAGE) == []


def test_every_file_and_folder_is_on_a_floor():
    found = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    assert {name.removesuffix(".py") for name in found} == set().union(*FLOORS)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("models/resnet.py", "import pytorch_lightning"),
        ("models/layers/gates.py", "from lightning_fabric import Fabric"),
        ("models/layers/gates.py", "from se_lightning.lightning import Trainer"),
        ("callbacks/publish.py", "from pytorch_lightning.loggers import WandbLogger"),
        ("data/base.py", "import lightning.pytorch as pl"),
        ("cli/run/build.py", "import lightning as L"),
        ("models/vgg.py", "    from se_lightning.modules import ImageClassifier"),
        ("data/base.py", "from se_lightning.models.layers.gates import SqueezeExcitation"),
        ("data/base.py", "import omegaconf"),
        ("modules/classifier.py", "from hydra.utils import instantiate"),
        ("modules/classifier.py", "from se_lightning.callbacks import EMA"),
        ("excitation/taps.py", "import wandb"),
        ("models/find.py", "import wandb"),
        ("callbacks/ema.py", "from omegaconf import DictConfig"),
        ("callbacks/ema.py", "from se_lightning.cli.run import result"),
        ("loggers.py", "import hydra"),
        ("tasks/fit.py", "from se_lightning.cli.errors import explain"),
        ("checkpoint.py", "from se_lightning import cli"),
        ("atomic.py", "from se_lightning import data"),
    ],
)
def test_a_planted_import_that_points_up_is_found(tmp_path, place, line):
    package = shutil.copytree(PACKAGE, tmp_path / "se_lightning")
    path = package / place
    planted = f"def planted():\n{line}\n" if line.startswith(" ") else f"{line}\n"
    path.write_text((path.read_text() if path.exists() else "") + planted)
    assert any(place in wrong for wrong in wrong_imports(package))
