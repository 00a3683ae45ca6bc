"""MNIST and the data sets in its format, Fashion-MNIST and KMNIST."""

from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from se_lightning.data.in_memory.datamodule import (
    InMemoryDataModule,
    InMemoryOptions,
    cut_validation,
)
from se_lightning.data.in_memory.idx import read_idx

__all__ = ["MNISTDataModule"]

# name: (class and folder in torchvision, mean, std, class names). Mean and std were computed on
# the 60,000 training images, in [0, 1].
_SETS: dict[str, tuple[str, float, float, tuple[str, ...]]] = {
    "mnist": ("MNIST", 0.1307, 0.3081, tuple("0123456789")),
    "fashion_mnist": (
        "FashionMNIST",
        0.2860,
        0.3530,
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "kmnist": (
        "KMNIST",
        0.1918,
        0.3483,
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_NDIM = {"images": 3, "labels": 1}


class MNISTDataModule(InMemoryDataModule):
    """MNIST, Fashion-MNIST or KMNIST: 60,000 training and 10,000 test images, 28x28 in gray.

    Reads the four IDX files, raw or .gz, in torchvision's layout (``root/FashionMNIST/raw/``) or
    directly in ``root``. Validation images are split off the training set; the split does not
    depend on ``seed``.

    Args:
        name: ``"mnist"``, ``"fashion_mnist"`` or ``"kmnist"``.
        root: Folder of the files.
        download: Download missing files with torchvision.
        val_size: Number of training images set aside for validation.
        split_seed: Seed of that split.
        **options: See :class:`se_lightning.data.in_memory.datamodule.InMemoryDataModule`; here
            ``crop_padding=2`` by default. ``flip`` is right for Fashion-MNIST only.

    Raises:
        ValueError: If an argument is out of its range, or a file is damaged.
        FileNotFoundError: If a file is missing or cannot be downloaded.
    """

    image_size = 28
    defaults: ClassVar = InMemoryOptions(crop_padding=2)

    def __init__(
        self,
        name: str = "mnist",
        root: str = "data",
        *,
        download: bool = False,
        val_size: int = 5000,
        split_seed: int = 0,
        **options: Unpack[InMemoryOptions],
    ) -> None:
        if name not in _SETS:
            raise ValueError(f"`name` (={name!r}) must be one of {', '.join(_SETS)}.")
        super().__init__(**(MNISTDataModule.defaults | options))
        self.folder, self.mean, self.std, self.class_names = _SETS[name]
        self.root = Path(root).expanduser()
        self.download = download
        self.val_size = val_size
        self.split_seed = split_seed

    def prepare_data(self) -> None:
        """Download missing files if ``download``; Lightning calls it once per node."""
        if not self.download:
            return
        self._discard_halves()
        if all(self._find(file) for file in _FILES.values()):
            return
        from torchvision import datasets

        try:
            getattr(datasets, self.folder)(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{self.folder} could not be downloaded to {self.root.absolute()}: {error}. "
                f"Put its files there by hand: {', '.join(_FILES.values())}, raw or .gz."
            ) from error

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # noqa: D102
        images, labels = self._read("train")
        train, val = cut_validation(len(labels), self.val_size, self.split_seed)
        return {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": self._read("test"),
        }

    def _discard_halves(self) -> None:
        """Delete incomplete files of an interrupted download from torchvision's folder."""
        for (_, part), file in _FILES.items():
            path = self._find(file)
            if path is None or path.parent != self.root / self.folder / "raw":
                continue
            try:
                read_idx(path, _NDIM[part])
            except ValueError:
                path.unlink()

    def _find(self, file: str) -> Path | None:
        folders = (self.root / self.folder / "raw", self.root)
        candidates = [folder / (file + end) for folder in folders for end in ("", ".gz")]
        return next((path for path in candidates if path.is_file()), None)

    def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        arrays, paths = [], []
        for part, ndim in _NDIM.items():
            file = _FILES[split, part]
            path = self._find(file)
            if path is None:
                root = self.root.absolute()
                raise FileNotFoundError(
                    f"{file}[.gz] of {self.folder} is missing: neither in {root} nor in "
                    f"{root / self.folder / 'raw'}. Set data.root to its folder, or download it "
                    "with data.download=true."
                )
            arrays.append(read_idx(path, ndim))
            paths.append(path)
        images, labels = arrays
        if len(images) != len(labels):
            raise ValueError(
                f"{paths[0].name} and {paths[1].name} in {paths[1].parent} do not match: "
                f"{len(images)} images, {len(labels)} labels."
            )
        size = (self.image_size, self.image_size)
        if images.shape[1:] != size:
            raise ValueError(f"{paths[0]} has images of {images.shape[1:]} pixels, not {size}.")
        if len(labels) and labels.max() >= self.num_classes:
            raise ValueError(
                f"{paths[1]} has the label {labels.max()}; {self.folder} has {self.num_classes} "
                f"classes, 0 to {self.num_classes - 1}."
            )
        return images, labels
