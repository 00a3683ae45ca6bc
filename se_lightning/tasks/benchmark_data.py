"""Throughput of the input pipeline, compared with torchvision and a DataLoader."""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from torchvision.transforms import v2

from se_lightning.atomic import write_json
from se_lightning.data import FakeDataModule, ImageFolderDataModule
from se_lightning.data.base import ImageDataModule
from se_lightning.data.cores import cores
from se_lightning.tasks.timing import machine

__all__ = ["benchmark_data"]

log = logging.getLogger(__name__)
_BATCH = 128  # of small images; files use the datamodule's default
_PHOTOS = 256


@dataclass
class _Result:
    case: str
    what: str
    ours: float
    torchvision: float
    ratio: float
    ratios: list[float]
    torchvision_setting: str
    torchvision_settings: dict[str, float]


def benchmark_data(
    *,
    folder: str,
    cases: Sequence[str] = ("mnist", "cifar", "jpeg"),
    rounds: int = 5,
    seconds: float = 3.0,
    workers: Sequence[int] | None = None,
) -> dict[str, float]:
    """Compare images per second with torchvision, with the same augmentation.

    Both sides return normalized float batches. torchvision uses its data set, the faster version
    of its transforms, and a DataLoader with the best number of workers, which is found first. Then
    both sides alternate. Writes ``benchmark_data.json``.

    Args:
        folder: Output folder.
        cases: Any of ``"mnist"``, ``"cifar"`` and ``"jpeg"``.
        rounds: Turns of each side; the ratio is the median over them.
        seconds: Minimum duration of a turn.
        workers: Numbers of workers to try for torchvision; None for 0, half the cores, and all.

    Returns:
        The ratio of each case, as ``ratio/mnist`` and so on.

    Raises:
        ValueError: If a case is unknown, or ``rounds`` is below 1.
    """
    if any(case not in _CASES for case in cases):
        raise ValueError(f"`cases` (={list(cases)}) must be among {', '.join(_CASES)}.")
    if rounds < 1:
        raise ValueError(f"`rounds` (={rounds}) must be at least 1.")
    tried = sorted({0, cores() // 2, cores()}) if workers is None else workers
    results = []
    log.info("%-34s%14s%13s%9s", "images per second", "se_lightning", "torchvision", "ratio")
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            results.append(_measure(case, Path(scratch), tried, rounds, seconds))
            log.info("%s", _line(results[-1]))
    content = {"machine": machine(), "results": [asdict(result) for result in results]}
    path = Path(folder) / "benchmark_data.json"
    write_json(path, content)
    log.info("%s", path)
    return {f"ratio/{result.case}": result.ratio for result in results}


def _line(result: _Result) -> str:
    rates = f"{result.ours:14,.0f}{result.torchvision:13,.0f}{result.ratio:8.1f}x"
    return f"{result.what:34}{rates}  ({result.torchvision_setting})"


def _measure(
    case: str, scratch: Path, workers: Sequence[int], rounds: int, seconds: float
) -> _Result:
    what, ours, theirs = _CASES[case](scratch)

    def loader(version: str, count: int) -> _Images:
        return _Images(
            DataLoader(
                theirs[version],
                batch_size=ours.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=count,
                persistent_workers=count > 0,
            )
        )

    # One at a time, to have no idle workers.
    settings = [(version, count) for version in theirs for count in workers]
    rates = {setting: _rate(loader(*setting), seconds / 2) for setting in settings}
    best = max(rates, key=lambda setting: rates[setting])
    ours.setup("fit")
    loaders = _Images(ours.train_dataloader()), loader(*best)
    for each in loaders:
        _rate(each, 0)  # starts the workers and fills the caches
    turns = [[_rate(each, seconds) for each in loaders] for _ in range(rounds)]
    ratios = [mine / its for mine, its in turns]
    mine, its = map(statistics.median, zip(*turns, strict=True))
    named = {"{}, {} workers".format(*key): rate for key, rate in rates.items()}
    return _Result(
        case,
        what,
        mine,
        its,
        statistics.median(ratios),
        ratios,
        max(named, key=lambda name: named[name]),
        named,
    )


class _Images:
    """The images of a DataLoader's batches."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[torch.Tensor]:
        _leave_cores_to(self.loader.num_workers)
        for images, _ in self.loader:
            yield images


def _leave_cores_to(workers: int) -> None:
    """Limit the threads of the main process to the cores without a worker, at least one."""
    torch.set_num_threads(max(1, cores() - workers))


def _rate(batches: Iterable[torch.Tensor], seconds: float) -> float:
    """Return images per second over the whole epochs that fill the time."""
    images, start = 0, time.perf_counter()
    while True:
        images += sum(len(batch) for batch in batches)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return images / elapsed


class _PerSample(Dataset):
    """Small images as torchvision's MNIST and CIFAR10 serve them: one PIL image at a time."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def _versions(*steps: tuple[str, dict[str, Any]], mean: Any, std: Any) -> dict[str, Any]:
    """Return the same augmentation in torchvision's transforms v1 and v2."""
    ends = {
        "transforms": [transforms.ToTensor(), transforms.Normalize(mean, std)],
        "transforms.v2": [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ],
    }
    made: dict[str, Any] = {}
    for (name, end), module in zip(ends.items(), (transforms, v2), strict=True):
        begin = [getattr(module, step)(**options) for step, options in steps]
        made[name] = module.Compose(begin + end)
    return made


def _in_memory(
    what: str, size: int, channels: int, side: int, padding: int, flip: bool
) -> tuple[str, ImageDataModule, dict[str, Dataset]]:
    data = FakeDataModule(
        size=size,
        in_channels=channels,
        image_size=side,
        batch_size=_BATCH,
        crop_padding=padding,
        flip=flip,
    )
    images = data.load()["train"][0]
    arrays = images[:, 0] if channels == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    steps: list[tuple[str, dict[str, Any]]] = [("RandomCrop", {"size": side, "padding": padding})]
    steps += [("RandomHorizontalFlip", {})] if flip else []
    versions = _versions(*steps, mean=[data.mean] * channels, std=[data.std] * channels)
    theirs: dict[str, Dataset] = {
        name: _PerSample(arrays, transform) for name, transform in versions.items()
    }
    return what, data, theirs


def _jpeg(scratch: Path) -> tuple[str, ImageDataModule, dict[str, Dataset]]:
    root = scratch / "jpeg"
    for number in range(_PHOTOS):
        path = root / "train" / str(number % 2) / f"{number}.jpg"
        _write_photo(path, number)
        for copy in range(1, 8):  # for an epoch of several seconds
            os.link(path, path.with_stem(f"{number}_{copy}"))
    for label in range(2):
        _write_photo(root / "val" / str(label) / "0.jpg", label)
    data = ImageFolderDataModule(str(root))
    crop = ("RandomResizedCrop", {"size": 224, "antialias": True})
    versions = _versions(crop, ("RandomHorizontalFlip", {}), mean=data.mean, std=data.std)
    theirs: dict[str, Dataset] = {
        name: datasets.ImageFolder(str(root / "train"), transform)
        for name, transform in versions.items()
    }
    return "500x375 JPEGs to 224x224", data, theirs


def _write_photo(path: Path, seed: int) -> None:
    """Write a 500x375 JPEG of about 80 KB, cropped from a photograph of scikit-learn."""
    photo = load_sample_images().images[seed % 2]
    generator = np.random.default_rng(seed)
    top, left = (generator.integers(0, free + 1) for free in (427 - 375, 640 - 500))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo[top : top + 375, left : left + 500]).save(path, quality=95)


_CASES: dict[str, Callable[[Path], tuple[str, ImageDataModule, dict[str, Dataset]]]] = {
    "mnist": lambda _: _in_memory("28x28x1, crop", 20_000, 1, 28, padding=2, flip=False),
    "cifar": lambda _: _in_memory("32x32x3, crop and flip", 20_000, 3, 32, padding=4, flip=True),
    "jpeg": _jpeg,
}
