"""Every command of README.md runs; `.ci/run` runs the two set-up blocks literally."""

import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from se_lightning.models import create_model, list_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"\| `((?:python -m se_lightning|torchrun) .*?)` \|", README)
# On a machine of 2 cores eight processes take minutes, as do runs of several jobs.
SLOW = (
    "trainer.devices=8",
    "seed=0,1,2",
    "torchrun",
    "placement=",
    "stages=",
    "gate=channel,spatial",
    # Other tests run these, or the like, and look at more.
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
    "data=image_folder",
    "data.download=true",
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
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def data(idx_root, write_idx, write_jpeg):
    """Make a folder that has every data set; 200 images beside the 5,000 of validation."""
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


def test_the_set_up_commands_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for name, last in (("run", "python -m se_lightning"), ("test", 'pytest -n 2 -m "not slow"')):
        assert f"readme_command {name}" in ci
        (block,) = re.findall(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
        assert block.rstrip().splitlines()[-1] == last


def test_the_table_of_commands_is_found():
    assert len(COMMANDS) == 41


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.slow if any(word in c for word in SLOW) else ())
        for c in COMMANDS
    ],
)
@pytest.mark.timeout(600)
def test_a_command_runs(command, cli, short, data, tmp_path):
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
        cli(*short, "hydra.run.dir=old", "logger=csv", f"model.gate={gate}")
    ends = () if "--help" in words or "sweep" in words[-1] else short
    ends += ("jobs.trials=2",) * ("jobs.trials=20" in words)
    if "task=benchmark_data" in words:
        ends = ("task.rounds=1", "task.seconds=0")
    elif "task=benchmark_excitation" in words:
        ends = ("task.name=se_resnet20", "task.image_size=32", "task.pairs=2")
    elif "ckpt_path=" in command and "task=" in command and "task=test" not in words:
        ends = ("trainer.accelerator=cpu",)
    if "data=imagenet" in words and "task=shard" not in words:
        ends += ("data.image_size=64", "data.batch_size=4", "data.eval_batch_size=4")
    done = cli(*words[1:], *ends, command=start)
    if "jobs." in command:  # what each job says is in a file where several would speak at once
        assert "summary.md" in done.stdout
        assert "failed" not in done.stdout
    elif ends:
        trains = not any(word.startswith("task=") for word in words) or "task=test" in words
        assert ("test accuracy" if trains else "run directory") in done.stdout


def test_the_table_of_networks_has_every_name_and_its_counts():
    rows = re.findall(r"^\| (`se.*?) \| `(\w+)` \| ([\d,]+) \|$", README, re.MULTILINE)
    named = set()
    for family, example, count in rows:
        stem = ""
        for word in re.findall(r"`([^`]+)`", family):
            found = re.fullmatch(r"([a-z_0-9]*?)(?:\{(.*)\})?", word)
            stem = found[1] if found[1].startswith("se") else stem
            ends = found[2].split(",") if found[2] else [""]
            first = stem if found[1].startswith("se") else re.sub(r"\d+$", "", stem) + found[1]
            named |= {first + end for end in ends}
        with torch.device("meta"):
            model = create_model(example)
        assert sum(p.numel() for p in model.parameters()) == int(count.replace(",", "")), example
    assert sorted(named) == list_models()


def test_the_python_blocks_run(cli, tmp_path):
    look, surviving, surgery, training = blocks("python")
    cli(command=[sys.executable, "-c", surviving])
    assert (tmp_path / "saved" / "last.ckpt").exists()
    assert len([line for line in training.splitlines() if line]) <= 11
    cli(command=[sys.executable, "-c", training])
    assert (tmp_path / "excitation" / "histogram.png").exists()
    done = cli(command=[sys.executable, "-c", look])
    assert "'layer4.2.se': (8, 2048)" in done.stdout
    done = cli(command=[sys.executable, "-c", surgery])
    assert "torchvision's layout: 318 tensors loaded; 64 kept as they were" in done.stdout


def test_pictures_and_numbers_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
    assert "92.94 %" in README  # of the run that drew the picture
