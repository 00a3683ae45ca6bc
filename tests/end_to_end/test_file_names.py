"""Names of files and classes that are not UTF-8, or break lines, pass through everything."""

import csv
import json
import os

import pytest
from matplotlib.image import imread

from se_lightning import ImageFolderDataModule
from se_lightning.data.files.sources import write_shards
from se_lightning.tasks import look

ODD = [
    os.fsdecode(name) for name in (b"Mu\xf1oz", b"\xc7\xd1 \xb1\xdb", b"a\xff\xfe$b", b"two\nlines")
]


@pytest.fixture(params=range(len(ODD)))
def odd(request):
    return ODD[request.param]


@pytest.fixture
def root(tmp_path, write_jpeg, odd):
    for split in ("train", "val"):
        for number in range(8):
            name = ("cat", odd)[number % 2]
            write_jpeg(tmp_path / "images" / split / name / f"{odd}{number}.jpg", number)
    return tmp_path / "images"


def folder(root, **options):
    return ImageFolderDataModule(
        str(root), image_size=16, num_workers=0, batch_size=4, eval_batch_size=4, **options
    )


def test_bad_files_are_listed_by_their_own_names(root, odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (odd, "broken"):
        (root / "val" / "cat" / f"{name}.jpg").write_bytes(b"not an image")
    data = folder(root, on_error="skip")
    data.setup()
    assert sum(len(labels) for _, labels in data.eval_dataloader("val")) == 8
    lines = (tmp_path / "bad_files.txt").read_bytes().splitlines()
    assert len(lines) == 2
    path = os.fsencode(root / "val" / "cat" / odd).replace(b"\n", b"\\n")
    assert any(line.startswith(path + b".jpg: not an image") for line in lines)


def test_shards_are_written_and_read(root, odd, tmp_path):
    data = folder(root)
    data.setup()
    sources = {split: data.source(split) for split in ("train", "val")}
    write_shards(sources, data.class_names, tmp_path / "shards")
    again = folder(tmp_path / "shards")
    again.setup()
    assert again.class_names == data.class_names
    assert odd in again.class_names
    for split, source in sources.items():
        other = again.source(split)
        assert [other.read(i) for i in range(8)] == [source.read(i) for i in range(8)]


def test_tables_and_pictures_are_utf8(root, odd, tmp_path):
    data = folder(root)
    data.setup()
    look(data, folder=str(tmp_path), images=4)
    with (tmp_path / "class_counts.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    shown = odd.encode("utf-8", "backslashreplace").decode()
    assert rows[shown]["train"] == "4"
    for name in ("look.png", "class_counts.png"):
        assert imread(tmp_path / name).std() > 0.02


@pytest.mark.parametrize("odd", [2], indirect=True)
def test_a_run_writes_its_results_and_its_report(run_main, root, odd, tmp_path, short):
    code, message = run_main(
        "data=image_folder",
        f'data.root="{root}"',
        "data.image_size=32",
        "data.num_workers=0",
        "data.batch_size=4",
        "lr_scheduler=constant",
        "hydra.run.dir=run",
        *short,
    )
    assert code == 0, message
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    code, message = run_main(
        "task=analyze",
        "ckpt_path=run/checkpoints/best.ckpt",
        "task.classes=2",
        "hydra.run.dir=analysis",
        more=("logger=csv", "trainer.accelerator=cpu"),
    )
    assert code == 0, message
    assert (tmp_path / "analysis" / "analysis" / "report.html").read_text(encoding="utf-8")
