"""The recipes of CONTRIBUTING.md, followed verbatim in a copy of the repository."""

import csv
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = dict(
    re.findall(
        r"^### (.+?)\n(.*?)(?=^### |\Z)",
        (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Recipes\n")[2],
        re.MULTILINE | re.DOTALL,
    )
)
# A line with the instruction for the code block below it.
STEP = re.compile(
    r"^(?P<how>Create|Append to|In) `(?P<path>[^`]+)`"
    r"(?:, (?P<where>after|after each|before) `(?P<line>[^`]+)`, add)?:"
    r"\n\n```(?:python|yaml|text)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def edit(path: Path, step: re.Match[str]) -> None:
    """Follow one step of a recipe."""
    code, line = step["code"], f"{step['line']}\n"
    if step["how"] == "Create":
        assert not path.exists(), path
        path.write_text(code)
        return
    text = path.read_text()
    if step["how"] == "Append to":
        path.write_text(f"{text}\n\n{code}")
        return
    count = text.splitlines(keepends=True).count(line)
    assert count == 1 or (count and step["where"] == "after each"), f"{count} lines {line!r}"
    added = f"{code}\n\n{line}" if step["where"] == "before" else f"{line}{code}"
    path.write_text("".join(added if x == line else x for x in text.splitlines(keepends=True)))


@pytest.fixture
def follow(tmp_path, cli, short):
    """Follow a recipe in a copy; return the edited files and a function that runs Python there."""
    copy = tmp_path / "copy"
    for folder in ("se_lightning", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def python(*arguments: str) -> subprocess.CompletedProcess:
        return cli(*arguments, command=[sys.executable], env={"PYTHONPATH": str(copy)})

    def run(title: str):
        recipe = RECIPES[title]
        steps = list(STEP.finditer(recipe))
        commands = re.findall(r"^```bash\n(.*?)\n```", recipe, re.MULTILINE | re.DOTALL)
        assert len(steps) + len(commands) == recipe.count("\n```") / 2, (
            "a code block has no instruction"
        )
        for step in steps:
            edit(copy / step["path"], step)
        for command in commands:
            program, *words = shlex.split(command)
            assert program == "python"
            done = python(*words, *short, "logger=csv", "hydra.run.dir=run")
            assert "test accuracy" in done.stdout
        floors = runpy.run_path(str(ROOT / "tests" / "test_floors.py"))
        assert floors["wrong_imports"](copy / "se_lightning") == []
        return [step["path"] for step in steps], python

    return run


def python_files(paths: list[str]) -> set[str]:
    return {path for path in paths if path.endswith(".py")}


def test_the_recipes_are_found():
    assert list(RECIPES) == ["Add a network", "Add a gate", "Add a data set", "Add a callback"]


def test_adding_a_network_takes_three_files_and_a_yaml(follow):
    paths, python = follow("Add a network")
    assert len(python_files(paths)) == 3
    assert set(paths) - python_files(paths) == {"conf/model/se_tiny.yaml"}
    done = python(
        "-c",
        "from se_lightning.models import create_model, list_models;"
        "assert 'se_tiny' in list_models();"
        "print(sum(p.numel() for p in create_model('se_tiny').parameters()))",
    )
    # Convolutions 23,472, norms 224, gates 2,828, classifier 650.
    assert int(done.stdout) == 27_174
    assert "27,174 parameters" in RECIPES["Add a network"]
    done = python("-m", "se_lightning", "task=test", "ckpt_path=run/checkpoints/best.ckpt")
    assert "test accuracy" in done.stdout


def test_adding_a_gate_takes_a_class_and_a_row(follow, tmp_path):
    paths, python = follow("Add a gate")
    assert set(paths) == {"se_lightning/models/layers/gates.py"}
    done = python(
        "-c",
        "import torch; from se_lightning.models import create_model, find_excitations;"
        "network = create_model('se_resnet20', gate='eca');"
        "print(len(find_excitations(network)), network(torch.zeros(2, 3, 32, 32)).shape)",
    )
    assert done.stdout.strip() == "9 torch.Size([2, 10])"
    with np.load(tmp_path / "run" / "excitation" / "histogram.npz") as histogram:
        (counts,) = (histogram[key] for key in histogram.files if key == "counts")
    assert counts.sum() > 0
    assert (tmp_path / "run" / "excitation" / "histogram.png").exists()


@pytest.mark.slow
def test_adding_a_data_set_takes_a_file_and_a_yaml(follow):
    paths, python = follow("Add a data set")
    assert paths == ["se_lightning/data/shapes.py", "conf/data/shapes.yaml"]
    done = python("-m", "se_lightning", "task=test", "ckpt_path=run/checkpoints/best.ckpt")
    assert "test accuracy" in done.stdout


@pytest.mark.slow
def test_adding_a_callback_takes_a_file_and_a_yaml(follow, tmp_path):
    paths, _ = follow("Add a callback")
    assert paths == ["se_lightning/callbacks/mean_gate.py", "conf/callbacks/mean_gate.yaml"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = {key for row in csv.DictReader(file) for key, value in row.items() if value}
    assert len([key for key in logged if key.startswith("mean_gate/")]) == 9
