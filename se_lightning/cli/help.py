"""``--help`` and ``--version``: what a command can say, on one screen."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from omegaconf import OmegaConf

from se_lightning.cli.command import GROUPS, Command

__all__ = ["help_text", "version_text"]

_HEAD = """\
usage: python -m se_lightning [-m] [GROUP=OPTION ...] [KEY=VALUE ...]

Trains squeeze-and-excitation networks and shows what their gates do.

  python -m se_lightning                          the digits, a minute on a CPU
  python -m se_lightning data=image_folder data.root=DIR model=se_resnet50
  python -m se_lightning -m model.ratio=4,8,16    one run per ratio, and a table
  python -m se_lightning task=test ckpt_path=RUN_DIR/checkpoints/best.ckpt
  python -m se_lightning resume=RUN_DIR           continues an interrupted run
"""
_MEANINGS = {
    "model": "the network",
    "data": "the images",
    "task": "what is done",
    "trainer": "devices",
    "optimizer": "updates",
    "lr_scheduler": "learning rate",
    "callbacks": "what is saved and shown",
    "logger": "where metrics go",
    "compile": "torch.compile",
    "experiment": "recipes",
    "debug": "short runs",
}
_KEYS = {
    "model.ratio": "channels of a layer per hidden unit of its gate",
    "model.gate": "channel, spatial, concurrent or none",
    "model.weights": "initial weights: a file or a name on the hub",
    "data.root": "folder of the images, where data has one",
    "data.batch_size": "images per device and step",
    "optimizer.lr": "the highest learning rate",
    "trainer.max_epochs": "how long to train",
    "trainer.devices": "number of GPUs or processes",
    "ckpt_path": "the checkpoint that a task reads or training continues",
    "seed": "of initial weights, order and augmentation",
    "output_dir": "where a run writes; default: outputs/TIME",
}
_FOOT = """\
  --cfg job           prints every key of this command, with its value
  --config-dir DIR    adds a folder of your own configs: DIR/model/mine.yaml
  -m                  runs each combination of values separated by commas
  --version           prints the versions
All commands: docs/commands.md
"""
_WIDTH = 80
_LINES = {"model": 10}  # of the options of a group
_FEW_LINES = 3


def help_text(command: Command) -> str:
    """Return the help: groups with their options, and the most used keys with their values."""
    loader, config = command.loader(), Command(command.flags).config
    chosen = config.hydra.runtime.choices
    found = [group for group in loader.list_groups("") if group != "hydra"]
    groups = sorted(found, key=lambda group: (group not in GROUPS, (*GROUPS, group).index(group)))
    lines = [_HEAD, "groups and their options:"]
    for group in groups:
        options = loader.get_group_options(group)
        if options:
            lines += _group(group, options, chosen.get(group))
    lines.append("\nkeys:")
    for key, meaning in _KEYS.items():
        value = None if key == "output_dir" else OmegaConf.select(config, key)  # it has a time
        lines.append(f"  {key if value is None else f'{key}={value}':24}{meaning}")
    return "\n".join([*lines, "", _FOOT.rstrip()])


def _group(group: str, options: Sequence[str], default: str | None) -> list[str]:
    meaning = _MEANINGS.get(group)
    about = f"{meaning}; default {default}" if meaning and default else meaning or "yours"
    names = textwrap.wrap(
        ", ".join(_short(options)),
        _WIDTH,
        initial_indent=f"  {group} ({about}): ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = _LINES.get(group, _FEW_LINES)
    if len(names) > lines:
        names[lines - 1 :] = [f"    ... ({group}=? lists all {len(options)})"]
    return names


def _short(options: Iterable[str]) -> list[str]:
    """Join names that differ in what follows their first number: ``resnet{18,50}``."""
    short = []
    for stem, group in itertools.groupby(sorted(options, key=_parts), lambda name: _parts(name)[0]):
        rests = [name[len(stem) :] for name in group]
        short.append(stem + (rests[0] if len(rests) == 1 else "{" + ",".join(rests) + "}"))
    return short


def _parts(name: str) -> tuple[str, list[int]]:
    stem = re.split(r"\d", name, maxsplit=1)[0]
    return stem, [int(number) for number in re.findall(r"\d+", name)]


def version_text() -> str:
    """Return the version of this package, and of those that it builds on."""
    others = ("torch", "pytorch-lightning", "hydra-core")
    built = ", ".join(f"{package} {version(package)}" for package in others)
    return f"se_lightning {version('se_lightning')} ({built})"
