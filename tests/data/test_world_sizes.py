"""Metrics do not depend on the number of processes."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import pytorch_lightning as pl
from se_lightning import ImageFolderDataModule, MNISTDataModule, SEResNetModule

idx, images, out, devices = sys.argv[1:]
results = []
for data, channels, classes in (
    (MNISTDataModule("mnist", idx, val_size=20, eval_batch_size=16), 1, 10),
    (ImageFolderDataModule(images, image_size=32, eval_batch_size=16, num_workers=0), 3, 3),
):
    pl.seed_everything(0, verbose=False)
    model = SEResNetModule(20, classes, ratio=4, in_channels=channels)
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(devices), strategy="ddp" if int(devices) > 1 else "auto",
        logger=False, enable_progress_bar=False, use_distributed_sampler=False,
    )
    (found,) = trainer.test(model, data, verbose=False)
    results.append(found | {"world": trainer.world_size})
if trainer.is_global_zero:
    open(out, "w").write(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_test_accuracy_of_101_samples_is_the_same_on_1_2_and_3_processes(
    tmp_path, idx_root, write_jpeg
):
    images = tmp_path / "images"
    for number in range(101):
        label = "abc"[number * number % 3]
        write_jpeg(images / "val" / label / f"{number}.jpg", number)
        write_jpeg(images / "train" / label / f"{number}.jpg", number)
    write_jpeg(images / "train" / "c" / "0.jpg", 0)
    write_jpeg(images / "val" / "c" / "0.jpg", 0)
    (images / "val" / "a" / "0.jpg").unlink()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    found = []
    for devices in (1, 2, 3):
        out = tmp_path / f"{devices}.json"
        command = [sys.executable, str(script), str(idx_root), str(images), str(out), str(devices)]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
        found.append(json.loads(out.read_text()))
    for each in zip(*found, strict=True):
        assert [result["world"] for result in each] == [1, 2, 3]
        for name in each[0].keys() - {"world", "test/loss"}:
            assert each[0][name] == each[1][name] == each[2][name], name
        losses = [result["test/loss"] for result in each]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
