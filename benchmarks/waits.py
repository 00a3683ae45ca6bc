"""Show that no training step waits for the GPU, first alone and then under Lightning's Trainer.

python benchmarks/waits.py FOLDER [--rehearse]

While the computer waits for a result, it cannot queue the next operations. CUDA raises an error at
the first operation that waits in a step alone, and warns of each in a Trainer's steps.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import se_lightning
from se_lightning.models import create_model


def alone(device: str, name: str, side: int) -> None:
    """Run steps of a network in mixed precision."""
    network = create_model(name, num_classes=10).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(8, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8, device=device)
    for number in range(4):
        watch(device, "error" if number > 1 else "default")  # the first steps choose algorithms
        try:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        finally:
            watch(device, "default")


def watch(device: str, mode: str) -> None:
    """Say what happens when an operation waits for a GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


class Watch(pl.Callback):
    """Counts the operations that wait between the start of a batch and its end."""

    def __init__(self, device: str) -> None:
        self.device, self.places = device, []
        self.context: Any = None

    def on_train_batch_start(self, trainer, module, batch, index) -> None:  # noqa: D102
        if index > 3:
            self.context = warnings.catch_warnings(record=True)
            self.found = self.context.__enter__()
            warnings.simplefilter("always")
            watch(self.device, "warn")

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:  # noqa: D102
        if self.context is not None:
            watch(self.device, "default")
            self.context.__exit__(None, None, None)
            self.context = None
            waits = [each for each in self.found if "synchronizing" in str(each.message)]
            self.places += [f"{each.filename}:{each.lineno}" for each in waits]


def in_trainer(device: str, steps: int) -> list[str]:
    """Return the places at which steps of SE-ResNet-20 on the digits waited."""
    module = se_lightning.SEResNetModule(depth=20, num_classes=10, in_channels=1)
    seen = Watch(device)
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen],
    )
    trainer.fit(module, datamodule=se_lightning.DigitsDataModule())
    return seen.places


def main() -> None:
    """Write what was found to a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, where nothing waits")
    options = parser.parse_args()
    device = "cpu" if options.rehearse else "cuda"
    alone(device, *(("se_resnet20", 32) if options.rehearse else ("se_resnet50", 224)))
    places = in_trainer(device, 6 if options.rehearse else 12)
    options.folder.mkdir(parents=True, exist_ok=True)
    found = {"places": sorted(set(places)), "metrics": {"waits in a Trainer": len(places)}}
    (options.folder / "result.json").write_text(json.dumps(found, indent=1))
    if places:
        raise SystemExit("steps waited for the GPU at\n" + "\n".join(found["places"]))


if __name__ == "__main__":
    main()
