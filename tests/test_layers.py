"""Imports point down, or sideways inside one folder (the floors of the house)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "se_lightning"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Floors, the ground first; what is on none is above.
FLOORS = {"ranks": 1, "models": 1, "excitation": 2, "modules": 2, "data": 2}
FLOORS |= {"callbacks": 3, "tasks": 3, "loggers": 3, "checkpoint": 3, "results": 3}
FLOORS |= {
    "errors": 3,
    "console": 3,
    "directories": 3,
    "memory": 4,
    "account": 4,
    "checks": 4,
    "failures": 4,
    "jobs": 4,
    "points": 4,
    "search": 4,
    "summary": 4,
    "sweeps": 4,
    "unfinished": 4,
    "train": 4,
    "__main__": 4,
    "__init__": 5,
}
NEVER = {
    "models": {"pytorch_lightning", "hydra", "omegaconf", "wandb", "torchmetrics"},
    "modules": {"hydra", "omegaconf", "wandb"},
    "data": {"hydra", "omegaconf", "wandb"},
    "excitation": {"hydra", "omegaconf", "wandb"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        pytest.skip("the face of the package: it only hands names on, lazily")
    here = room(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in NEVER.get(here, ()), f"{path} imports {name}"
        there = rest.partition(".")[0]
        if top == "se_lightning" and there in FLOORS:
            sideways = there == here or FLOORS[here] >= 3
            assert FLOORS[there] < FLOORS[here] or (sideways and FLOORS[there] <= FLOORS[here]), (
                f"{path} imports {name}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_room_is_on_a_floor(path):
    assert room(path) in FLOORS
