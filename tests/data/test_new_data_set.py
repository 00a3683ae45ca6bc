"""A new data set takes one file in se_lightning/data/ and one in conf/data/."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from se_lightning import data

ROOT = Path(__file__).parents[2]

MODULE = '''
"""Flowers: two kinds, bright and dark."""

import numpy as np

from se_lightning.data.in_memory.datamodule import InMemoryDataModule

__all__ = ["FlowersDataModule"]


class FlowersDataModule(InMemoryDataModule):
    """60 random images, 32x32 in color."""

    image_size = 32
    in_channels = 3
    mean = 0.5
    std = 0.25
    class_names = ("rose", "tulip")

    def load(self):
        generator = np.random.default_rng(0)
        labels = np.arange(20) % 2
        images = generator.integers(0, 128, (20, 3, 32, 32)) + 127 * labels[:, None, None, None]
        return {split: (images.astype(np.uint8), labels) for split in ("train", "val", "test")}
'''
CONFIG = """# Flowers: made up for a test.
defaults:
  - family/augmentation@_here_
_target_: se_lightning.data.flowers.FlowersDataModule
batch_size: 10
eval_batch_size: 10
crop_padding: 2
flip: true
num_workers: 0
seed: 0
"""


def test_it_trains_and_its_checkpoint_is_tested(tmp_path, cli, result):
    copy = tmp_path / "copy"
    for folder in ("se_lightning", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "se_lightning" / "data" / "flowers.py").write_text(MODULE.lstrip())
    (copy / "conf" / "data" / "flowers.yaml").write_text(CONFIG)
    here = {"PYTHONPATH": str(copy)}
    train = ("model=se_simple", "data=flowers", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    cli(*train, "logger=csv", "data.batch_size=5", "hydra.run.dir=run", env=here)
    trained = result(tmp_path / "run")
    assert (trained["status"], trained["data"]) == ("completed", "flowers")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    cli("task=test", f"ckpt_path={path}", "logger=csv", "hydra.run.dir=test", env=here)
    tested = result(tmp_path / "test")
    assert (tested["status"], tested["data"]) == ("completed", "FlowersDataModule")
    assert tested["metrics"]["test/acc1"] == trained["metrics"]["test/acc1"]


@pytest.mark.parametrize("name", sorted(set(data.__all__) - {"find_datamodule"}))
def test_every_shipped_datamodule_is_found_by_name(name):
    assert data.find_datamodule(name) is getattr(data, name)


def test_only_datamodules_of_the_folder_are_found():
    for name in ("ImageDataModule", "InMemoryDataModule", "DataLoader", "importlib", "os.system"):
        assert data.find_datamodule(name) is None


@pytest.mark.slow
def test_type_checkers_see_the_shipped_names(tmp_path):
    path = tmp_path / "use.py"
    path.write_text("from se_lightning.data import MNISTDataModule\nMNISTDataModule(root=3)\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert 'incompatible type "int"; expected "str"' in done.stdout
    assert "Found 1 error" in done.stdout
