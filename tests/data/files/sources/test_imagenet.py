import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import ImageFolder, imagenet

from se_lightning.data.files.sources.imagenet import (
    imagenet_class_names,
    imagenet_sources,
    imagenet_wnids,
)
from se_lightning.data.files.sources.shard_writer import write_shards

WNIDS = ("n01440764", "n01443537", "n02110958", "n15075141")  # 0, 1, 254 and 999
COUNTS = (3, 2, 2, 1)
# The class of validation image 1, 2 ...
TRUTH = ("n02110958", "n01440764", "n15075141", "n01440764", "n01443537")
DEVKIT = "ILSVRC2012_devkit_t12"

pytestmark = pytest.mark.filterwarnings("ignore:Only 4 of ImageNet's 1000 classes")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "cache"))


def put(path: Path, content: bytes | str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.name if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tar_of(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def train_files() -> dict[str, dict[str, bytes]]:
    generator = np.random.default_rng(0)
    return {
        wnid: {f"{wnid}_{i}.JPEG": generator.bytes(100 * i + 7) for i in range(9, 9 + count)}
        for wnid, count in zip(WNIDS, COUNTS, strict=True)
    }


def val_files() -> dict[str, bytes]:
    generator = np.random.default_rng(1)
    return {f"ILSVRC2012_val_{i:08d}.JPEG": generator.bytes(900 + i) for i in range(1, 6)}


def put_train(root: Path) -> None:
    for wnid, images in train_files().items():
        for name, content in images.items():
            put(root / "train" / wnid / name, content)


def put_val(root: Path) -> None:
    for (name, content), wnid in zip(val_files().items(), TRUTH, strict=True):
        put(root / "val" / wnid / name, content)


def put_flat_val(root: Path) -> None:
    for name, content in val_files().items():
        put(root / "val" / name, content)


def put_train_tar(root: Path) -> None:
    inner = {f"{wnid}.tar": tar_of(images) for wnid, images in reversed(train_files().items())}
    put(root / "ILSVRC2012_img_train.tar", tar_of(inner))


def put_val_tar(root: Path) -> None:
    shuffled = dict(sorted(val_files().items(), key=lambda item: item[1]))
    put(root / "ILSVRC2012_img_val.tar", tar_of(shuffled))


@pytest.fixture(scope="session")
def devkit(tmp_path_factory) -> Path:
    """Write the unpacked kit, numbered and with groups of classes as in the real one."""
    folder = tmp_path_factory.mktemp("devkit") / DEVKIT
    order = np.random.default_rng(2).permutation(1000)
    numbers = {wnid: int(order[i]) + 1 for i, wnid in enumerate(imagenet_wnids())}
    rows = [(number, wnid, f"a, {wnid}", "gloss", 0) for wnid, number in numbers.items()]
    rows += [(1001, "n00001740", "entity", "gloss", 2), (1002, "n00001930", "thing", "gloss", 1)]
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    more = ("children", "wordnet_height", "num_train_images")
    synsets = np.empty((len(rows), 1), [(name, object) for name in fields + more])
    for i, row in enumerate(sorted(rows)):
        synsets[i, 0] = (*row, np.arange(row[4]), 0, 1300)
    (folder / "data").mkdir(parents=True)
    scipy.io.savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{numbers[wnid]}\n" for wnid in TRUTH)
    put(folder / "data" / "ILSVRC2012_validation_ground_truth.txt", lines)
    return folder


def put_devkit(root: Path, devkit: Path) -> None:
    shutil.copytree(devkit, root / DEVKIT)


def put_packed_devkit(root: Path, devkit: Path) -> None:
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz") as tar:
        tar.add(devkit, DEVKIT)


def put_caffe(root: Path, devkit: Path) -> None:
    lines = [f"ILSVRC2012_val_{i + 1:08d}.JPEG {index_of(w)}" for i, w in enumerate(TRUTH)]
    put(root / "val.txt", "\n".join(reversed(lines)) + "\n")


def put_kaggle(root: Path, devkit: Path) -> None:
    lines = [f"ILSVRC2012_val_{i + 1:08d},{w} 1 2 30 40 {w} 5 6 7 8" for i, w in enumerate(TRUTH)]
    text = "\r\n".join(["ImageId,PredictionString", *reversed(lines)])
    put(root / "LOC_val_solution.csv", text + "\r\n")


def index_of(wnid: str) -> int:
    return imagenet_wnids().index(wnid)


def found(source) -> list[tuple[bytes, int]]:
    return [(source.read(i), int(source.labels[i])) for i in range(len(source))]


def expected_train() -> list[tuple[bytes, int]]:
    files = train_files()
    return [(files[w][name], index_of(w)) for w in WNIDS for name in sorted(files[w])]


def expected_val() -> list[tuple[bytes, int]]:
    return [(content, index_of(w)) for content, w in zip(val_files().values(), TRUTH, strict=True)]


def test_the_standard_indices():
    from importlib.resources import files

    assert imagenet_wnids() == tuple(
        (files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    )
    known = {0: "n01440764", 1: "n01443537", 254: "n02110958", 404: "n02690373", 972: "n09246464"}
    assert {index: imagenet_wnids()[index] for index in known} == known
    assert list(imagenet_wnids()) == sorted(set(imagenet_wnids()))
    names = imagenet_class_names()
    assert len(names) == len(imagenet_wnids()) == 1000
    # torchvision took its names from the same ids.
    assert [names[i] for i in known] == ["tench", "goldfish", "pug", "airliner", "cliff"]


def test_class_folders_have_standard_labels_even_if_some_are_missing(tmp_path):
    put_train(tmp_path)
    put_val(tmp_path)
    with pytest.warns(UserWarning, match="Only 4 of ImageNet's 1000 classes have training images"):
        sources = imagenet_sources(tmp_path)
    assert found(sources["train"]) == expected_train()
    assert sorted(found(sources["val"])) == sorted(expected_val())
    names = [sources["train"].name(i) for i in range(8)]
    assert names == [path for path, _ in ImageFolder(tmp_path / "train").samples]
    assert sources["train"].labels.dtype == np.int64


@pytest.mark.parametrize("truth", [put_devkit, put_packed_devkit, put_caffe, put_kaggle])
@pytest.mark.parametrize("put_images", [put_flat_val, put_val_tar])
def test_validation_images_have_the_class_of_the_ground_truth(tmp_path, devkit, truth, put_images):
    put_images(tmp_path)
    truth(tmp_path, devkit)
    sources = imagenet_sources(tmp_path, ["val"])
    assert list(sources) == ["val"]
    assert found(sources["val"]) == expected_val()


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("truth", [put_kaggle, put_devkit, put_caffe])
def test_kaggles_archive_is_read_from_any_of_its_folders(tmp_path, devkit, given, truth):
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    put_train(images)
    put_flat_val(images)
    put(images / "test" / "ILSVRC2012_test_00000001.JPEG")
    put(tmp_path / "LOC_sample_submission.csv")
    truth(tmp_path, devkit)
    sources = imagenet_sources(tmp_path / given)
    assert found(sources["train"]) == expected_train()
    assert found(sources["val"]) == expected_val()


def test_tars_may_be_unpacked_into_folders_of_their_names(tmp_path, devkit):
    put_train(tmp_path)
    put_flat_val(tmp_path)
    put_caffe(tmp_path, devkit)
    for split in ("train", "val"):
        (tmp_path / split).rename(tmp_path / f"ILSVRC2012_img_{split}")
    sources = imagenet_sources(tmp_path)
    assert found(sources["train"]) == expected_train()
    assert found(sources["val"]) == expected_val()


def test_hidden_files_of_a_mac_are_no_images(tmp_path, devkit):
    put_train(tmp_path)
    put_caffe(tmp_path, devkit)
    files = val_files()
    hidden = {f"./val/._{name}": b"resource fork" for name in files}
    members = hidden | {f"./val/{name}": content for name, content in files.items()}
    put(tmp_path / "ILSVRC2012_img_val.tar", tar_of(members))
    put(tmp_path / "train" / ".ipynb_checkpoints" / "1.JPEG")
    put(tmp_path / "train" / WNIDS[0] / f"._{WNIDS[0]}_9.JPEG")
    sources = imagenet_sources(tmp_path)
    assert found(sources["train"]) == expected_train()
    assert found(sources["val"]) == expected_val()


def test_torchvision_reads_the_same_from_the_development_kit(tmp_path, devkit, monkeypatch):
    put_packed_devkit(tmp_path, devkit)
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)  # the real one's checksum
    imagenet.parse_devkit_archive(tmp_path)
    _, val_wnids = imagenet.load_meta_file(tmp_path)
    assert tuple(val_wnids) == TRUTH
    put_val_tar(tmp_path)
    labels = imagenet_sources(tmp_path, ["val"])["val"].labels
    assert [imagenet_wnids()[label] for label in labels] == val_wnids


def test_the_original_tars_are_read_as_if_unpacked(tmp_path, devkit):
    tars, folders = tmp_path / "tars", tmp_path / "folders"
    for root, puts in ((tars, (put_train_tar, put_val_tar)), (folders, (put_train, put_flat_val))):
        root.mkdir()
        for put_images in puts:
            put_images(root)
        put_devkit(root, devkit)
    one, other = imagenet_sources(tars), imagenet_sources(folders)
    for split in ("train", "val"):
        assert found(one[split]) == found(other[split])
    assert found(one["train"]) == expected_train()
    assert one["train"].name(0) == f"{tars}/ILSVRC2012_img_train.tar: n01440764_10.JPEG"


def test_the_index_of_a_tar_is_kept_until_the_tar_changes(tmp_path, monkeypatch):
    import os

    from se_lightning.data.files.sources import imagenet

    seen = []
    scan = imagenet._scan_train
    monkeypatch.setattr(imagenet, "_scan_train", lambda path: seen.append(path) or scan(path))
    put_train_tar(tmp_path)
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    os.utime(tar, (1, 1))
    for _ in range(2):
        assert found(imagenet_sources(tmp_path, ["train"])["train"]) == expected_train()
    assert len(seen) == 1
    os.utime(tar, (2, 2))
    imagenet_sources(tmp_path, ["train"])
    assert len(seen) == 2


def test_folders_and_tars_may_be_mixed(tmp_path, devkit):
    put_train_tar(tmp_path)
    put_val(tmp_path)
    sources = imagenet_sources(tmp_path)
    assert found(sources["train"]) == expected_train()
    assert sorted(found(sources["val"])) == sorted(expected_val())


def test_shards_come_first_and_have_the_same_images(tmp_path):
    put_train(tmp_path / "a")
    put_val(tmp_path / "a")
    sources = imagenet_sources(tmp_path / "a")
    write_shards(sources, imagenet_class_names(), tmp_path / "b")
    put(tmp_path / "b" / "train" / "nonsense" / "1.jpg")
    again = imagenet_sources(tmp_path / "b")
    for split in ("train", "val"):
        assert found(again[split]) == found(sources[split])


def test_shards_of_other_classes_are_refused(tmp_path):
    put_train(tmp_path / "a")
    put_val(tmp_path / "a")
    sources = {split: s.subset([0]) for split, s in imagenet_sources(tmp_path / "a").items()}
    write_shards(sources, ["cat", "dog"], tmp_path / "b")
    with pytest.raises(ValueError, match=r"2 classes, not ImageNet's 1000; data=image_folder"):
        imagenet_sources(tmp_path / "b")


def test_a_missing_root_is_reported_with_both_ways_out(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none is not a folder.*image-net\.org.*data\.root="
    ):
        imagenet_sources(tmp_path / "none")


def test_an_unknown_layout_is_reported_with_what_was_found_and_expected(tmp_path):
    for name in "abcdefg":
        put(tmp_path / name / "1.jpg")
    with pytest.raises(ValueError, match=r"No train images") as caught:
        imagenet_sources(tmp_path)
    for words in ("has: a/, b/, c/, d/, e/ and", "more", "train/n01440764/*.JPEG", "img_train.tar"):
        assert words in str(caught.value)
    put(tmp_path / "train" / "n01440764.tar", b"")  # unpacked once only
    with pytest.raises(ValueError, match=r"/train has: n01440764\.tar\."):
        imagenet_sources(tmp_path)
    put_train(tmp_path)
    with pytest.raises(ValueError, match=r"No val images of ImageNet.*Expected there: val/n014"):
        imagenet_sources(tmp_path)


def test_a_folder_that_is_no_standard_class_is_named(tmp_path):
    put_train(tmp_path)
    put(tmp_path / "train" / "n99999999" / "1.JPEG")
    with pytest.raises(ValueError, match=r"train/n99999999 .*\(1 such folders\).*image_folder"):
        imagenet_sources(tmp_path)


def test_an_archive_in_the_train_tar_that_is_no_standard_class_is_named(tmp_path):
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of({"n99999999.tar": tar_of({})}))
    with pytest.raises(ValueError, match=r"img_train\.tar .*it has n99999999\.tar"):
        imagenet_sources(tmp_path)


def test_validation_images_without_ground_truth_are_refused(tmp_path):
    put_flat_val(tmp_path)
    with pytest.raises(ValueError, match=r"their classes are missing from") as caught:
        imagenet_sources(tmp_path, ["val"])
    assert f"{DEVKIT}.tar.gz" in str(caught.value)
    assert "val.txt" in str(caught.value)


@pytest.mark.parametrize("truth", [put_devkit, put_packed_devkit, put_caffe, put_kaggle])
def test_ground_truth_of_another_length_is_refused(tmp_path, devkit, truth):
    put_flat_val(tmp_path)
    truth(tmp_path, devkit)
    (tmp_path / "val" / "ILSVRC2012_val_00000005.JPEG").unlink()
    with pytest.raises(ValueError, match=r"has 4 images, but .* lists 5\."):
        imagenet_sources(tmp_path, ["val"])


def test_a_missing_and_a_duplicated_image_are_noticed(tmp_path, devkit):
    put_flat_val(tmp_path)
    put_caffe(tmp_path, devkit)
    (tmp_path / "val" / "ILSVRC2012_val_00000005.JPEG").rename(
        tmp_path / "val" / "ILSVRC2012_val_00000001.jpg"
    )
    with pytest.raises(ValueError, match="not numbered 1 to 5:"):
        imagenet_sources(tmp_path, ["val"])


def test_an_unknown_validation_image_is_named(tmp_path, devkit):
    put_flat_val(tmp_path)
    put_caffe(tmp_path, devkit)
    put(tmp_path / "val" / "cat.jpg")
    with pytest.raises(ValueError, match=r"cat\.jpg in .*val must be named like ILSVRC2012_val_"):
        imagenet_sources(tmp_path, ["val"])


@pytest.mark.parametrize("line", ["ILSVRC2012_val_00000001.JPEG 1000", "val_1.JPEG 3", "nonsense"])
def test_an_invalid_ground_truth_is_named(tmp_path, line):
    put_flat_val(tmp_path)
    put(tmp_path / "val.txt", line)
    with pytest.raises(ValueError, match="cannot be read from"):
        imagenet_sources(tmp_path, ["val"])


@pytest.mark.parametrize(
    "row", ["ILSVRC2012_val_00000001,n00000000 1 2 3 4", "val_1,n01440764 1 2 3 4", "one column"]
)
def test_an_invalid_list_of_kaggle_is_named(tmp_path, row):
    put_flat_val(tmp_path)
    put(tmp_path / "LOC_val_solution.csv", f"ImageId,PredictionString\n{row}\n")
    with pytest.raises(ValueError, match="cannot be read from"):
        imagenet_sources(tmp_path, ["val"])


@pytest.mark.parametrize("part", ["gzip", "meta.mat"])
def test_a_damaged_development_kit_is_named(tmp_path, devkit, part):
    put_flat_val(tmp_path)
    if part == "gzip":
        put_packed_devkit(tmp_path, devkit)
        path = tmp_path / f"{DEVKIT}.tar.gz"
    else:
        put_devkit(tmp_path, devkit)
        path = tmp_path / DEVKIT / "data" / "meta.mat"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"ground truth of ImageNet's .* cannot be read from"):
        imagenet_sources(tmp_path, ["val"])


@pytest.mark.parametrize("cut", [0.999, 0.6, 0.3, 0.01])
def test_a_truncated_train_tar_is_named(tmp_path, cut):
    put_train_tar(tmp_path)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * cut)])
    if cut == 0.999:  # only padding is lost
        assert found(imagenet_sources(tmp_path, ["train"])["train"]) == expected_train()
    else:
        with pytest.raises(ValueError, match=r"img_train\.tar is truncated, damaged, or not a tar"):
            imagenet_sources(tmp_path, ["train"])


def test_a_damaged_class_in_the_train_tar_is_named(tmp_path):
    inner = {"n01440764.tar": tar_of({"1.JPEG": b"1"}), "n01443537.tar": b"\1" * 2000}
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of(inner))
    with pytest.raises(
        ValueError, match=r"n01443537\.tar in .*img_train\.tar is truncated, damaged, or not a tar"
    ):
        imagenet_sources(tmp_path, ["train"])


def test_a_tar_without_images_is_refused(tmp_path):
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of({}))
    with pytest.raises(ValueError, match=r"img_train\.tar has no images"):
        imagenet_sources(tmp_path, ["train"])


def test_all_classes_give_no_warning(tmp_path, recwarn):
    for wnid in imagenet_wnids():
        put(tmp_path / "train" / wnid / "1.JPEG", b"")
    source = imagenet_sources(tmp_path, ["train"])["train"]
    assert source.labels.tolist() == list(range(1000))
    assert not [warning for warning in recwarn if "classes" in str(warning.message)]
