from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write_jpeg(path: Path, seed: int, size: tuple[int, int] = (60, 45)) -> None:
    """Write a smooth picture, so that JPEG keeps what it shows; the size is (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


@pytest.fixture
def write_jpeg() -> Callable[..., None]:
    return _write_jpeg


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No index of an earlier test."""
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def image_root(tmp_path) -> Path:
    """Make root/{train,val}/{cat,dog,eel}/*.jpg: 24 and 9 images of several sizes."""
    root = tmp_path / "images"
    for split, count in (("train", 24), ("val", 9)):
        for number in range(count):
            label = ("cat", "dog", "eel")[number % 3]
            size = (60 + number, 45 + 2 * number)
            _write_jpeg(root / split / label / f"{number:02}.jpg", number, size)
    return root
