"""CIFAR-10 and CIFAR-100."""

from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from se_lightning.data.in_memory.cifar_files import download_cifar, find_cifar, read_cifar
from se_lightning.data.in_memory.datamodule import (
    InMemoryDataModule,
    InMemoryOptions,
    cut_validation,
)

__all__ = ["CIFARDataModule"]

# Names and order are those of the official files.
_TEN = "airplane automobile bird cat deer dog frog horse ship truck"
_HUNDRED = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_TWENTY = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
# Class names by kind of label; mean and std of the 50,000 training images, in [0, 1].
_NAMES = {
    "cifar10": {"fine": tuple(_TEN.split())},
    "cifar100": {"fine": tuple(_HUNDRED.split()), "coarse": tuple(_TWENTY.split())},
}
_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


class CIFARDataModule(InMemoryDataModule):
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images, 32x32 in color.

    Reads the official files, pickled or binary, packed or unpacked. Nothing is unpacked to disk,
    and no code in a pickle is run. Validation images are split off the training set; the split
    does not depend on ``seed``.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: Folder that contains the ``.tar.gz`` or its folder, or that folder itself.
        labels: ``"fine"``, or for CIFAR-100 ``"coarse"``, the 20 superclasses.
        download: Download missing files from the authors' site.
        val_size: Number of training images set aside for validation.
        split_seed: Seed of that split.
        **options: See :class:`se_lightning.data.in_memory.datamodule.InMemoryDataModule`; here
            ``crop_padding=4`` and ``flip=True`` by default.

    Raises:
        ValueError: If an argument is out of its range, or a file is damaged.
        FileNotFoundError: If the files are missing or cannot be downloaded.

    Reference:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    image_size = 32
    in_channels = 3
    defaults: ClassVar = InMemoryOptions(crop_padding=4, flip=True)

    def __init__(
        self,
        name: str = "cifar10",
        root: str = "data",
        *,
        labels: str = "fine",
        download: bool = False,
        val_size: int = 5000,
        split_seed: int = 0,
        **options: Unpack[InMemoryOptions],
    ) -> None:
        if name not in _NAMES:
            raise ValueError(f"`name` (={name!r}) must be one of {', '.join(_NAMES)}.")
        if labels not in _NAMES[name]:
            raise ValueError(
                f"`labels` (={labels!r}) must be one of {', '.join(_NAMES[name])} for {name}; "
                "coarse labels are the superclasses of cifar100."
            )
        super().__init__(**(CIFARDataModule.defaults | options))
        self.set = name
        self.root = Path(root).expanduser()
        self.kind = labels
        self.class_names = _NAMES[name][labels]
        self.mean, self.std = _MEAN[name], _STD[name]
        self.download = download
        self.val_size = val_size
        self.split_seed = split_seed

    def prepare_data(self) -> None:
        """Download missing files if ``download``; Lightning calls it once per node."""
        if self.download and find_cifar(self.root, self.set) is None:
            download_cifar(self.root, self.set)

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # noqa: D102
        train, test = read_cifar(self.root, self.set, _NAMES[self.set])
        images, labels = train.images, train.labels[self.kind]
        stay, val = cut_validation(len(labels), self.val_size, self.split_seed)
        return {
            "train": (images[stay], labels[stay]),
            "val": (images[val], labels[val]),
            "test": (test.images, test.labels[self.kind]),
        }
