import tarfile

import pytest
import torch

from se_lightning import FakeDataModule, ImageFolderDataModule
from se_lightning.tasks import shard


def batches(root, workers, **start):
    data = ImageFolderDataModule(
        str(root), image_size=32, batch_size=5, num_workers=workers, rotation=10, mixup=0.2
    )
    data.setup()
    return list(data.train_dataloader(**start)), data


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_same_batches_as_the_files_reached_or_jumped_to(
    run_main, tmp_path, image_root, workers
):
    arguments = ("task=shard", "data=image_folder", f"data.root={image_root}", "task.output=shards")
    code, message = run_main(*arguments)
    assert code == 0, message
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        assert tar.getnames()[:2] == ["000000000.jpg", "000000000.cls"]
        first = sorted((image_root / "train" / "cat").iterdir())[0]
        assert tar.extractfile("000000000.jpg").read() == first.read_bytes()
    whole, _ = batches(image_root, 0, epoch=1)
    jumped, data = batches(tmp_path / "shards", workers, epoch=1, batch=2)
    assert tuple(data.class_names) == ("cat", "dog", "eel")
    assert len(jumped) == len(whole) - 2
    for (x, y), (u, v) in zip(whole[2:], jumped, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    # A second run of the command writes nothing.
    before = (tmp_path / "shards" / "train-000000.tar").stat().st_mtime_ns
    assert run_main(*arguments)[0] == 0
    assert (tmp_path / "shards" / "train-000000.tar").stat().st_mtime_ns == before


def test_data_without_files_and_a_missing_output_are_refused(image_root):
    with pytest.raises(ValueError, match="data=imagenet or data=image_folder"):
        shard(FakeDataModule(), output="x")
    data = ImageFolderDataModule(str(image_root))
    with pytest.raises(ValueError, match=r"task\.output=DIR"):
        shard(data)
