"""Every command and Python block of README.md and docs/ runs; links, options and counts are right.

`.ci/run` runs the two set-up lines of README.md verbatim.
"""

import itertools
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from se_lightning.models import create_model, list_models

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
USE = [PAGES[name] for name in PAGES if name == "README.md" or name.startswith("docs/")]
COMMANDS = list(
    dict.fromkeys(
        command
        for text in USE
        for command in re.findall(r"`((?:python -m se_lightning|torchrun) [^`]*)`", text)
    )
)
# Eight processes or several jobs take minutes on a machine with 2 cores.
SLOW = (
    "trainer.devices=8",
    "task=analyze",
    "model.weights=FILE",
    "resume=RUN_DIR",
    "seed=0,1,2",
    "torchrun",
    "placement=",
    "stages=",
    "gate=channel,spatial",
    # Other tests run these or similar commands, and check more.
    "model=torchvision",
    "freeze=all_but_gates",
    "task=test",
    "model.ratio=4,8,16,32",
    "model.gate=none",
    "optimizer=adamw",
    "model=se_inception_v3",
    "model=se_resnet50 data=imagenet",
    "task=shard",
    "data=cifar10",
    "cifar10_speedrun",
    "data=image_folder",
    "data.download=true",
    "task=benchmark ",
    "task=benchmark_data",
    "task=what_if",
    "task=fold",
    "task=compare",
    "task=export",
    "task=benchmark_excitation",
    "logger=tensorboard",
    "every_minutes",
    "callbacks=ema",
    "on_nonfinite",
    "on_oom",
    "jobs.",
    "hydra/launcher",
    "debug=",
    "trainer=",
    "train=false",
    "test=false",
    "early_stopping",
    "output_dir=",
    "tags=",
    "many_loggers",
    "compile=",
)
# Commands of the documentation that another file runs, and what it contains.
ELSEWHERE = {
    "pytest se_lightning/models": ("pyproject.toml", "--doctest-modules"),
    'pytest tests/end_to_end/test_docs.py -m "not slow"': ("pyproject.toml", '"tests"'),
    "ruff check .": (".ci/run", "ruff check ."),
    "ruff format --check .": (".ci/run", "ruff format --check ."),
    "mypy": (".ci/run", "mypy"),
    ".ci/run": (".ci/run", "readme_command"),
    ".ci/slow": (".ci/slow", "pytest"),
    "sbatch --signal=USR1@120 --requeue": ("tests/cli/run/test_resume.py", "SIGUSR1"),
    "srun --kill-on-bad-exit=1": ("tests/end_to_end/test_distributed.py", "SLURM_PROCID"),
    "python examples/gates_into_a_plain_network.py": (
        "tests/end_to_end/test_finetuning.py",
        "gates_into_a_plain_network.py",
    ),
    "python app.py fit --model SEResNetModule --data DigitsDataModule --model.in_channels 1": (
        "tests/end_to_end/test_lightning_cli.py",
        "--model.in_channels=1",
    ),
    "wandb sync FOLDER FOLDER": ("tests/test_loggers.py", "Upload later with: "),
    "wandb sweep": ("tests/cli/sweep/test_search.py", "sweep.yaml"),
    "wandb login": ("tests/test_loggers.py", "WANDB_API_KEY"),  # has the same effect
}
# Output of the Python blocks that contain the key: text on the console, or a file.
SHOWN = {
    "excitations(timm": "'layer4.2.se': (8, 2048)",
    "excitations(torchvision": "'features.7.0.block.2': (8, 1152)",
    "add_excitation(": "torchvision's layout: 318 tensors loaded; 64 kept as they were",
    "list_models())": "50\n2048\ntorch.Size([2, 64, 8, 8])\n",
}
WRITTEN = {
    "LastCheckpoint(": "saved/last.ckpt",
    "ExcitationHistogram()": "excitation/histogram.png",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


PYTHON = list(dict.fromkeys(block for text in USE for block in blocks(text, "python")))


@pytest.fixture
def data(idx_root, write_idx, write_jpeg):
    """Create a folder with every data set: 200 training images beside the 5,000 for validation."""
    generator = np.random.default_rng(0)
    write_idx(idx_root / "train-images-idx3-ubyte.gz", generator.integers(0, 256, (5200, 28, 28)))
    write_idx(idx_root / "train-labels-idx1-ubyte", np.arange(5200) % 10)
    cifar = idx_root / "cifar-10-batches-bin"
    cifar.mkdir()
    for name, size in (*((f"data_batch_{i}", 1040) for i in range(1, 6)), ("test_batch", 20)):
        rows = generator.integers(0, 256, (size, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(size) % 10
        (cifar / f"{name}.bin").write_bytes(rows.tobytes())
    for split, number in itertools.product(("train", "val"), range(12)):
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        write_jpeg(idx_root / split / ("n01443537", "n02110958")[number % 2] / name, number)
    return idx_root


@pytest.mark.parametrize(
    ("name", "last"),
    [("run", "python -m se_lightning"), ("test", 'pytest -n 2 -m "not slow"')],
)
def test_the_set_up_commands_are_one_line_each_and_ci_runs_them(name, last):
    assert f"readme_command {name}" in (ROOT / ".ci" / "run").read_text()
    (block,) = re.findall(rf"<!-- {name} -->\n```bash\n(.*?)\n```", README, re.DOTALL)
    assert "\n" not in block
    first, *_, end = block.split(" && ")
    assert (first, end) == ("python -m venv .venv", last)


def test_the_commands_are_found():
    assert len(COMMANDS) == 63


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.slow if any(word in c for word in SLOW) else ())
        for c in COMMANDS
    ],
)
@pytest.mark.timeout(600)
def test_each_command_runs(command, cli, short, data, tmp_path):
    places = {"RUN_DIR": "old", "SWEEP_DIR": "sweep", "=DIR": f"={data}", "=FILE": "=weights.pth"}
    for place, value in places.items():
        command = command.replace(place, value)
    words = shlex.split(command)
    if "model.weights=weights.pth" in words:
        torch.save(create_model("se_resnet50").state_dict(), tmp_path / "weights.pth")
    if words[0] == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    else:
        start = [sys.executable]
    if "sweep" in words[-1]:
        cli("-m", "model.ratio=4,8", *short, "hydra.sweep.dir=sweep", "logger=csv")
        (tmp_path / "sweep" / "1" / "result.json").unlink()
    if "old/" in command or "=old" in command:
        gate = "channel" if any(word.startswith("task=") for word in words) else "none"
        epochs = ("checkpoint.top_k=2", "trainer.max_epochs=2") * ("epoch=000" in command)
        cli(*short, *epochs, "hydra.run.dir=old", "logger=csv", f"model.gate={gate}")
    only_shows = {"--help", "--version", "--cfg"} & set(words)
    extra = () if only_shows or "sweep" in words[-1] else short
    extra += ("jobs.trials=2",) * ("jobs.trials=20" in words)
    if "task=benchmark_data" in words:
        extra = ("task.rounds=1", "task.seconds=0", "task.workers=[2]")
    elif "task=benchmark" in words:
        extra = ("task.image_size=32", "task.batch_size=2", "task.rounds=1")
    elif "task=benchmark_excitation" in words:
        extra = ("task.name=se_resnet20", "task.image_size=32", "task.pairs=2")
    elif "ckpt_path=" in command and "task=" in command and "task=test" not in words:
        extra = ("trainer.accelerator=cpu",)
    if "data=imagenet" in words and "task=shard" not in words:
        extra += ("data.image_size=64", "data.batch_size=4", "data.eval_batch_size=4")
    done = cli(*words[1:], *extra, command=start)
    if "jobs." in command:  # jobs write to separate files
        assert "summary.md" in done.stdout
        assert "failed" not in done.stdout
    elif extra:
        tasks = {word for word in words if word.startswith("task=")}
        tests = tasks <= {"task=test"} and "test=false" not in words
        assert ("test accuracy" if tests else "run directory") in done.stdout


def commands(text: str) -> set[str]:
    """Return the shell commands in code spans and bash blocks, except those of the recipes."""
    text = text.partition("## Recipes")[0]
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    start = r"(python|torchrun|pytest|pip|sbatch|srun|ruff|wandb) |mypy$|\.ci/\w+$"
    lines += [span for span in spans if re.match(start, span)]
    return {command for line in lines for command in line.split(" && ")}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_a_test_or_in_ci(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    set_up = {part for block in blocks(README, "bash") for part in block.strip().split(" && ")}
    for command in commands(PAGES[page]) - {*COMMANDS, *set_up}:
        extra = re.fullmatch(r'(?:pip install -e )"\.\[(\w+)\]"|pip install (\w+)', command)
        if extra:
            assert (extra[1] or extra[2]) in project["optional-dependencies"], command
            continue
        assert command in ELSEWHERE, f"no test runs: {command}"
        path, needle = ELSEWHERE[command]
        assert needle in (ROOT / path).read_text(), command


def config_keys() -> dict[str, set[str]]:
    """Return the keys of each config group, over all of its options."""
    keys: dict[str, set[str]] = {}
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        group = path.relative_to(ROOT / "conf").parts[0]
        keys.setdefault(group, set()).update(map(str, OmegaConf.load(path)))
    # Not resolved: Hydra's `now` exists only in its runs.
    primary: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "train.yaml"))
    for key, node in primary.items():
        keys.setdefault(key, set()).update(map(str, node) if isinstance(node, dict) else ())
    return keys


@pytest.mark.parametrize("page", PAGES)
def test_every_option_exists(page):
    keys = config_keys()
    option = re.compile(r"(?:^|[\s\"])\+?([a-z_]+)(?:\.(\w+)[\w.]*)?=([a-z][\w-]+)?")
    for span in re.findall(r"`([^`\n]+)`", PAGES[page]):
        for group, key, value in option.findall(span):
            if group not in keys or group == "hydra" or key == "NAME":
                continue
            assert not key or key in keys[group], span
            options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
            assert key or not value or not options or value in options, span


def test_the_table_of_networks_has_every_name_and_correct_counts():
    rows = re.findall(r"^\| (`se.*?) \| `(\w+)` \| ([\d,]+) \|$", PAGES["docs/networks.md"], re.M)
    named = set()
    for family, example, count in rows:
        stem = ""
        for word in re.findall(r"`([^`]+)`", family):
            found = re.fullmatch(r"([a-z_0-9]*?)(?:\{(.*)\})?", word)
            stem = found[1] if found[1].startswith("se") else stem
            suffixes = found[2].split(",") if found[2] else [""]
            first = stem if found[1].startswith("se") else re.sub(r"\d+$", "", stem) + found[1]
            named |= {first + suffix for suffix in suffixes}
        with torch.device("meta"):
            model = create_model(example)
        assert sum(p.numel() for p in model.parameters()) == int(count.replace(",", "")), example
    assert sorted(named) == list_models()


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[-1][:40])
def test_a_python_block_runs(block, cli, tmp_path):
    done = cli(command=[sys.executable, "-c", block])
    for key, text in SHOWN.items():
        assert key not in block or text in done.stdout
    for key, path in WRITTEN.items():
        assert key not in block or (tmp_path / path).exists()


def test_the_first_python_block_is_short():
    assert len([line for line in blocks(README, "python")[0].splitlines() if line]) <= 11


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def slugs(text: str) -> set[str]:
    """Return the anchors that GitHub generates for the headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_picture_exists(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file.read_text()), target
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", PAGES)
def test_every_repository_file_named_in_the_docs_exists(page):
    text = PAGES[page].partition("## Recipes")[0]
    file = r"[\w/]*\w\.(?:py|yaml|toml|cff)|(?:se_lightning|tests|conf|cli|callbacks)/[\w/]*"
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(file, span):
            assert (ROOT / span).exists() or (ROOT / "se_lightning" / span).exists(), span


def test_readme_links_every_page_of_docs_and_docs_use_every_picture():
    linked = set(re.findall(r"\]\((docs/[^)]+\.md)\)", README))
    assert linked == {name for name in PAGES if name.startswith("docs/")}
    for picture in (ROOT / "docs").glob("*.png"):
        assert any(f"{picture.name})" in text for text in USE), picture


def test_the_diagram_of_the_floors_matches_the_floor_tests():
    floors = runpy.run_path(str(ROOT / "tests" / "test_floors.py"))["FLOORS"]
    diagram = re.findall(r'f(\d)\["([^"]+)"\]', blocks(PAGES["docs/architecture.md"], "mermaid")[0])
    assert {int(n): set(rooms.split(", ")) for n, rooms in diagram} == dict(enumerate(floors))


def test_every_ignored_warning_has_a_url():
    lines = (ROOT / "pyproject.toml").read_text().partition("filterwarnings")[2].splitlines()
    comment = ""
    for line in (line.strip() for line in lines):
        if line.startswith("#"):
            comment += line
        elif line.startswith('"ignore'):
            assert "https://" in comment, line
            comment = ""


def test_citation_and_changelog_have_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert citation.version == version
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert f"## {version} - " in PAGES["CHANGELOG.md"]


def test_the_accuracy_of_the_pictured_run_is_the_same_on_every_page():
    for page in ("README.md", "docs/gates.md", "docs/performance.md"):
        assert "93.04 %" in PAGES[page]  # the run that the pictures show
