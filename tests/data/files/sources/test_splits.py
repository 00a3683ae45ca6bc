"""The splits of image folders as people have them."""

import logging
import os
from pathlib import Path

import pytest

from se_lightning.data.files.sources.image_folder import folder_sources
from se_lightning.data.files.sources.splits import split_of

CUT = {"val_fraction": 0.2, "test_fraction": 0.1, "split_seed": 0}


def tree(root: Path, *folders: str, images: int = 30) -> Path:
    """Create folders with images; a folder that ends in a slash gets the classes cat and dog."""
    for folder in folders:
        below = [folder + name for name in ("cat", "dog")] if folder.endswith("/") else [folder]
        for each in below:
            path = root / each
            path.mkdir(parents=True)
            for i in range(images):
                (path / f"{i}.jpg").write_bytes(os.fsencode(path / str(i)))
    return root


def found(root: Path, **options):
    """Return the folder of each image below the root, by split, and the classes."""
    sources, classes = folder_sources(root, **CUT | options)
    names = {s: {source.name(i) for i in range(len(source))} for s, source in sources.items()}
    tops = {split: {Path(n).parent.parent.relative_to(root).as_posix() for n in some}
            for split, some in names.items()}  # fmt: skip
    return names, tops, classes


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("Training", "Validation", "Testing"),
        ("training_set", "validation_set", "test_set"),
        ("train-images", "val data", "TestSplit"),
        ("archive/train", "archive/valid", "archive/test"),
        ("Brain MRI/images/Training", "Brain MRI/images/val", "Brain MRI/images/Testing"),
        ("train/train", "val/val", "test/test"),
        ("seg/Training/Training", "seg/Validation/images", "seg/Testing/testing"),
    ],
)
def test_the_usual_names_of_splits_are_found_in_any_case_and_further_down(
    tmp_path, train, val, test
):
    root = tree(tmp_path / "data", f"{train}/", f"{val}/", f"{test}/")
    (root / "README.md").write_text("from Kaggle")
    names, tops, classes = found(root)
    assert classes == ("cat", "dog")
    assert tops == {"train": {train}, "val": {val}, "test": {test}}
    assert {split: len(some) for split, some in names.items()} == dict.fromkeys(tops, 60)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Training", "Testing"), ("x/TRAIN", "x/TEST"), ("train_set", "test_set")],
)
def test_without_val_a_part_of_train_is_used(tmp_path, train, test):
    root = tree(tmp_path, f"{train}/", f"{test}/", images=100)
    names, tops, classes = found(root)
    assert classes == ("cat", "dog")
    assert tops == {"train": {train}, "val": {train}, "test": {test}}
    assert len(names["train"] | names["val"]) == 200
    assert not names["train"] & names["val"]
    assert 20 < len(names["val"]) < 60  # 40 on average
    assert len(names["test"]) == 200


def test_train_alone_is_split_as_a_folder_of_classes(tmp_path):
    root = tree(tmp_path, "data/Training/", images=100)
    names, _, classes = found(root / "data")
    assert classes == ("cat", "dog")
    assert names == found(root / "data" / "Training")[0]
    assert len(set().union(*names.values())) == 200


@pytest.mark.parametrize("wrapper", ["images", "archive/flowers", "latest images"])
def test_classes_may_be_further_down(tmp_path, wrapper):
    assert found(tree(tmp_path, f"{wrapper}/", images=60))[2] == ("cat", "dog")


@pytest.mark.parametrize(
    "classes",
    [("plane", "train"), ("bus", "car", "train"), ("blank", "control", "test"), ("Val", "x", "y"),
     ("plane", "test", "train")],
)  # fmt: skip
def test_a_class_named_like_a_split_is_a_class_and_this_is_said(tmp_path, classes, caplog):
    root = tree(tmp_path, *classes, images=60)
    names, _, there = found(root)
    assert there == tuple(sorted(classes))
    assert len(set().union(*names.values())) == 60 * len(classes)
    told = "\n".join(caplog.messages)
    assert "read as a class" in told
    for name in classes:
        assert f"{name}/" in told or not split_of(name)


@pytest.mark.parametrize("name", ["latest", "contest", "training wheels", "interval", "test tube"])
def test_other_names_are_ordinary_classes(tmp_path, name, caplog):
    assert split_of(name) is None
    root = tree(tmp_path, name, "train station", "dog", images=60)
    assert found(root)[2] == tuple(sorted((name, "train station", "dog")))
    assert caplog.messages == []


UNCLEAR = {
    "classes beside a test set": (("cat", "dog", "test/"), r"cat/, dog/: these may be splits or"),
    "classes beside train": (("bus", "train/"), r"train/ with folders of their own, next to bus/"),
    "no classes": (("train", "test"), r"has test/, train/ without class folders"),
    "train has no classes": (("Train", "Test/"), r"has Train/ without class folders"),
    "no train": (("val/", "test/"), r"has test/, val/, but no train/"),
    "two for val": (("train/", "val/", "valid/"), r"both val/ and valid/ for the val images"),
    "unusual names": (
        ("seg_train/seg_train/", "seg_test/seg_test/"),
        "seg_test/, seg_train/.*look",
    ),
    "flat test": (("abc_train/abc_train/", "abc_test/abc_test"), r"look like splits.*Rename them"),
    "two data sets": (
        ("original/train/", "original/test/", "grey/train/", "grey/test/"),
        r"data\.root=",
    ),
    "splits of each class": (
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        "has splits itself",
    ),
}


@pytest.mark.parametrize("layout", UNCLEAR)
def test_what_may_be_splits_or_classes_is_refused_with_the_way_out(tmp_path, layout):
    folders, message = UNCLEAR[layout]
    root = tree(tmp_path / "data", *folders)
    with pytest.raises(ValueError, match=message) as refused:
        found(root)
    assert "data/train/<class>" in str(refused.value) or layout == "two for val"


@pytest.mark.parametrize("split", ["test", "Test", "testing"])
def test_test_images_without_classes_are_left_out_by_name(tmp_path, split, caplog):
    root = tree(tmp_path, "train/", "val/", split)
    _, tops, classes = found(root)
    assert (tops["test"], classes) == ({"val"}, ("cat", "dog"))
    assert caplog.messages[-1].startswith(f"Not read in {root}: {split}/")


def test_other_folders_beside_splits_are_named(tmp_path, caplog):
    root = tree(tmp_path, "train/", "val/", "pred", "extra/")
    (root / "annotations").mkdir()
    assert found(root)[2] == ("cat", "dog")
    (told,) = caplog.messages
    assert "extra/, pred/" in told
    assert "annotations" not in told


def test_folders_with_the_same_folders_are_classes_with_a_warning(tmp_path, caplog):
    root = tree(tmp_path, "fold1/", "fold2/", "fold3/", images=60)
    assert found(root)[2] == ("fold1", "fold2", "fold3")
    assert "each of them has the folders cat/, dog/" in caplog.text


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("lack", ["no folder", "an empty folder", "a folder of notes"])
def test_a_split_may_lack_a_class(tmp_path, split, lack, caplog):
    root = tree(tmp_path, *(f"{s}/{c}" for s in ("train", "val", "test") for c in "abc"), images=3)
    for path in (root / split / "b").iterdir():
        path.unlink()
    if lack == "no folder":
        (root / split / "b").rmdir()
    elif lack == "a folder of notes":
        (root / split / "b" / "notes.txt").write_text("none yet")
    sources, classes = folder_sources(root, **CUT)
    assert classes == ("a", "b", "c")
    assert sources[split].labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert sources["train"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert f"{root / split} has no images of b." in caplog.messages


def test_train_must_have_images_of_each_class_and_each_split_some(tmp_path):
    root = tree(tmp_path, "train/", "val/cat")
    (root / "train" / "eel").mkdir()
    with pytest.raises(ValueError, match=r"have no image: eel\."):
        found(root)
    (root / "train" / "eel").rmdir()
    (root / "test" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"test has no images"):
        found(root)


@pytest.mark.parametrize("more", [("val/wolf",), ("test/Cat",), ("val/wolf", "val/fox")])
def test_a_class_that_train_lacks_is_refused_by_name(tmp_path, more):
    root = tree(tmp_path, "train/", "val/", *more)
    with pytest.raises(ValueError, match=r"not among the 2 classes: .*(wolf|Cat)"):
        found(root)


HIDDEN = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "#recycle", "$RECYCLE.BIN")


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("where", ["", "cat/", "train/", "train/cat/"])
def test_hidden_folders_are_no_classes_and_their_images_no_samples(tmp_path, name, where):
    splits = where.startswith("train")
    root = tree(tmp_path, *(["train/", "val/"] if splits else ["./"]), images=60)
    before = found(root)
    tree(root, f"{where}{name}", f"{where}{name}/cat")
    assert found(root) == before


@pytest.mark.parametrize("name", ["._1.jpg", ".jpg", ".hidden.PNG", ".DS_Store"])
def test_hidden_files_are_no_samples(tmp_path, name, caplog):
    root = tree(tmp_path, "./", images=60)
    before = found(root)
    for folder in (root, root / "cat"):
        (folder / name).write_bytes(b"not an image")
    (root / "cat" / "Thumbs.db").write_bytes(b"thumbnails")
    caplog.clear()
    assert found(root) == before
    assert caplog.messages == [f"Not read in {root}: 1 .db file."]


def test_files_left_out_are_counted_and_told_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = tree(tmp_path / "data", "train/", "val/", images=5)
    for name in ("a.heic", "b.HEIC", "c.gif", "LICENSE"):
        (root / "train" / "cat" / name).write_bytes(b"")
    (root / "val" / "dog" / "d.heic").write_bytes(b"")
    (root / "val" / "stray.jpg").write_bytes(b"")
    for _ in range(2):  # the second time from the cached index
        caplog.clear()
        found(root)
        assert caplog.messages == [
            f"Not read in {root}: 3 .heic files, 1 file without an extension, 1 .gif file, 1 image "
            "file outside of the class folders."
        ]


def test_a_class_of_unreadable_formats_is_refused_with_their_count(tmp_path):
    root = tree(tmp_path, "cat")
    (root / "dog").mkdir()
    for i in range(3):
        (root / "dog" / f"{i}.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"have no image: dog\. They have 3 \.heic files\."):
        found(root)
