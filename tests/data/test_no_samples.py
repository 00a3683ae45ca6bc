"""Two ranks: one may have no readable image, but not both."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import pytorch_lightning as pl
from se_lightning import ImageFolderDataModule, SEResNetModule

data = ImageFolderDataModule(
    sys.argv[1], image_size=32, eval_batch_size=2, num_workers=0, on_error="skip"
)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    use_distributed_sampler=False,
)
print(trainer.test(SEResNetModule(20, 3, ratio=4), data, verbose=False))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_without_images_is_fine_and_two_are_refused(tmp_path, image_root):
    (tmp_path / "run.py").write_text(SCRIPT)

    def run():
        command = [sys.executable, str(tmp_path / "run.py"), str(image_root)]
        return subprocess.run(command, timeout=140, capture_output=True, text=True, cwd=tmp_path)

    paths = sorted((image_root / "val").rglob("*.jpg"))
    for path in paths[1::2]:  # the share of rank 1
        path.write_text("hello")
    done = run()
    assert done.returncode == 0, done.stderr
    assert "'test/acc1'" in done.stdout
    for path in paths:
        path.write_text("hello")
    done = run()
    assert done.returncode != 0
    assert "ValueError: No test image was evaluated" in done.stderr
