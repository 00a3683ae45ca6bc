import itertools
import os
import tarfile

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from se_lightning import ImageFolderDataModule, ImageNetDataModule, SEResNetModule
from se_lightning.data.files import crops, decode

AUGMENTED = {
    "rotation": 10,
    "pixel_jitter": 20,
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "trivial_augment": True,
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "repeats": 2,
}


def folder(root, **options):
    given = {"image_size": 32, "batch_size": 5, "eval_batch_size": 4, "num_workers": 0}
    data = ImageFolderDataModule(str(root), **given | options)
    data.setup()
    return data


def test_evaluation_is_exactly_torchvisions(image_root):
    data = folder(image_root)
    usual = v2.Compose(
        [
            v2.Resize(37, antialias=True),  # 256 / 224 of 32
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    oracle = ImageFolder(image_root / "val", usual)
    images, labels = map(torch.cat, zip(*data.val_dataloader(), strict=True))
    assert torch.allclose(images, torch.stack([image for image, _ in oracle]), atol=1e-5)
    assert labels.tolist() == [label for _, label in oracle]
    assert data.num_classes == 3
    assert tuple(data.class_names) == ("cat", "dog", "eel")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_the_same_reached_or_jumped_to(image_root, workers):
    whole = folder(image_root, **AUGMENTED)
    loader = whole.train_dataloader()
    list(loader)
    loader.sampler.set_epoch(1)
    reached = list(loader)
    data = folder(image_root, num_workers=workers, **AUGMENTED)
    jumped = list(data.train_dataloader(epoch=1, batch=3))
    assert len(jumped) == len(reached) - 3 == 2
    for (x, y), (u, v) in zip(reached[3:], jumped, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_epochs_and_copies_of_a_sample_are_augmented_differently(image_root):
    dataset = folder(image_root).dataset("train", augmented=True)
    keys = np.arange(24)
    seen = [dataset[epoch, keys + 24 * copy].images for epoch in (0, 1) for copy in (0, 1)]
    for one, other in itertools.combinations(seen, 2):
        assert not (one == other).flatten(1).all(1).any()


def test_sizes_grow_with_the_epochs(image_root):
    data = folder(image_root, train_sizes=[[0, 16], [2, 24]])
    shapes = [next(iter(data.train_dataloader(epoch=e))).images.shape[-1] for e in range(4)]
    assert shapes == [16, 16, 24, 24]
    assert next(iter(data.val_dataloader())).images.shape[-1] == 32


def test_workers_hand_over_bytes(image_root):
    batch = next(iter(folder(image_root).train_dataloader()))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (5, 3, 32, 32)


def spoil(image_root, write_jpeg):
    """Break three of the 24 files in different ways."""
    paths = sorted((image_root / "train").rglob("*.jpg"))
    paths[3].write_text("hello")
    paths[8].write_bytes(paths[8].read_bytes()[:-200])
    paths[20].unlink()
    return [paths[i] for i in (3, 8, 20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_file_can_do_is_skipped_and_listed(image_root, tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    data = folder(image_root, on_error="skip", num_workers=workers)
    paths = sorted((image_root / "val").rglob("*.jpg"))
    Image.new("1", (1, 60_000)).save(paths[0], "PNG")
    Image.new("RGB", (9, 9)).save(paths[1], "EPS")
    paths[2].unlink()
    os.mkfifo(paths[2])
    monkeypatch.setattr(decode, "_MAX_RESIZED", 10**6)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 6
    lines = (tmp_path / "bad_files.txt").read_text().splitlines()
    expected = ["too thin", "not an image in JPEG", "It is a folder, a pipe or a device"]
    for path, line, reason in zip(paths, lines, expected, strict=False):
        assert line.startswith(f"{path}: {reason}")


def test_an_image_too_large_for_the_memory_is_named(image_root, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    data = folder(image_root)
    monkeypatch.setattr(crops, "eval_image", full)
    with pytest.raises(ValueError, match=r"00\.jpg cannot be read: too large for the memory"):
        list(data.val_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_file_stops_and_is_named(image_root, write_jpeg, workers):
    data = folder(image_root, num_workers=workers)
    (bad,) = spoil(image_root, write_jpeg)[:1]
    loader = data.train_dataloader()
    with pytest.raises(ValueError, match=r"cannot be read: .*on_error=skip") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    bad.write_text("")
    only = ImageFolderDataModule(str(image_root), num_workers=0, image_size=32, batch_size=24)
    with pytest.raises(ValueError, match=str(bad)):
        list(only.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_listed_once_and_shift_nothing(
    image_root, write_jpeg, workers, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    before = folder(image_root, batch_size=24).dataset("train", augmented=True)[0, np.arange(24)]
    data = folder(image_root, on_error="skip", num_workers=workers)
    bad = spoil(image_root, write_jpeg)
    after = data.dataset("train", augmented=True)[0, np.arange(24)]
    assert after.keys.tolist() == [key for key in range(24) if key not in (3, 8, 20)]
    assert torch.equal(after.images, before.images[after.keys])
    assert np.array_equal(after.labels, before.labels[after.keys])
    for _ in range(2):
        assert sum(len(batch.labels) for batch in data.train_dataloader()) == 21
    lines = (tmp_path / "bad_files.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == sorted(map(str, bad))
    assert lines[2] == f"{bad[2]}: No such file or directory"
    assert [record.args[0] for record in caplog.records] == [3]


def test_a_bad_file_does_not_change_how_its_batch_is_mixed(image_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # bad_files.txt goes there

    def shares():
        data = folder(image_root, on_error="skip", mixup=1.0, batch_size=24)
        ((_, labels),) = data.train_dataloader()
        # A sample mixed with one of the same class has a share of 1.
        return {round(float(share), 5) for share in labels.flatten()} - {0.0, 1.0}

    before = shares()
    first = next(iter(folder(image_root, batch_size=24).train_dataloader())).first
    sorted((image_root / "train").rglob("*.jpg"))[first].write_text("hello")
    assert shares() == before
    assert len(before) == 2


def test_a_training_batch_of_bad_files_only_stops(image_root):
    data = folder(image_root, on_error="skip")
    for path in (image_root / "train").rglob("*.jpg"):
        path.write_text("hello")
    with pytest.raises(ValueError, match="None of the 5 files of a batch can be read"):
        list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_of_bad_files_only_is_refused(image_root, tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    data = folder(image_root, on_error="skip", num_workers=workers)
    *others, last = sorted((image_root / "val").rglob("*.jpg"))
    for path in others:
        path.write_text("hello")
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 1
    last.write_text("hello")
    with pytest.raises(ValueError, match=r"None of the 9 files .* bad_files\.txt"):
        list(data.val_dataloader())
    assert len((tmp_path / "bad_files.txt").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [("on_error", "ignore"), ("on_error", None), ("interpolation", "cubic"), ("image_size", 0)],
)
def test_a_wrong_option_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ImageFolderDataModule(**{name: value})


def test_image_folder_trains_and_skips_in_lightning(image_root, write_jpeg, tmp_path):
    data = folder(image_root, on_error="skip", mixup=0.2)
    spoil(image_root, write_jpeg)
    trainer = pl.Trainer(
        default_root_dir=tmp_path / "run",
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SEResNetModule(20, 3, ratio=4), data)
    assert trainer.callback_metrics["val/acc1"] >= 0
    assert len((tmp_path / "run" / "bad_files.txt").read_text().splitlines()) == 3


# ImageNet in three forms, with 3 of its classes.
WNIDS = {"n01443537": 1, "n02110958": 254, "n09246464": 972}


@pytest.fixture
def imagenet_folders(tmp_path, write_jpeg):
    root = tmp_path / "folders"
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            wnid = list(WNIDS)[number % 3]
            stem = wnid if split == "train" else "ILSVRC2012_val"
            write_jpeg(root / split / wnid / f"{stem}_{number + 1:08}.JPEG", number)
    return root


@pytest.fixture
def imagenet_tars(tmp_path, imagenet_folders):
    root = tmp_path / "tars"
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            inner_path = tmp_path / f"{wnid}.tar"
            with tarfile.open(inner_path, "w") as inner:
                for path in sorted((imagenet_folders / "train" / wnid).iterdir()):
                    inner.add(path, path.name)
            outer.add(inner_path, inner_path.name)
    lines = []
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in sorted((imagenet_folders / "val").rglob("*.JPEG"), key=lambda p: p.name):
            tar.add(path, path.name)
            lines.append(f"{path.name} {WNIDS[path.parent.name]}\n")
    (root / "val.txt").write_text("".join(lines))
    return root


def imagenet(root, workers=0):
    options = {"image_size": 32, "batch_size": 4, "eval_batch_size": 4, "seed": 1}
    return ImageNetDataModule(str(root), num_workers=workers, **options, **AUGMENTED)


@pytest.mark.filterwarnings("ignore:Only 3 of ImageNet's 1000 classes")
@pytest.mark.parametrize("workers", [0, 2])
def test_folders_and_tars_give_the_same_batches_reached_or_jumped_to(
    imagenet_folders, imagenet_tars, workers
):
    whole = imagenet(imagenet_folders)
    reached = list(whole.train_dataloader(epoch=2))
    assert {int(label) for batch in whole.val_dataloader() for label in batch.labels} == {
        *WNIDS.values()
    }
    assert whole.num_classes == 1000
    data = imagenet(imagenet_tars, workers)
    jumped = list(data.train_dataloader(epoch=2, batch=1))
    assert len(jumped) == len(reached) - 1 == 2
    for (x, y), (u, v) in zip(reached[1:], jumped, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    ours, theirs = ([batch.images for batch in module.val_dataloader()] for module in (whole, data))
    assert sorted(image.sum() for images in ours for image in images) == sorted(
        image.sum() for images in theirs for image in images
    )


def test_a_folders_exif_orientation_counts_and_imagenets_does_not(tmp_path, write_jpeg):
    path = tmp_path / "images" / "train" / "n01443537" / "0.jpg"
    write_jpeg(path, 0)
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(path, exif=exif)
    look = {"image_size": 32, "num_workers": 0}
    content = path.read_bytes()
    plain = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])
    turned = plain(ImageOps.exif_transpose(picture := Image.open(path)))
    upright = ImageFolderDataModule("x", **look)._eval_view(content, 0, [])
    as_is = ImageNetDataModule("x", **look)._eval_view(content, 0, [])
    assert torch.equal(upright, turned)
    assert torch.equal(as_is, plain(picture))
    assert not torch.equal(upright, as_is)
