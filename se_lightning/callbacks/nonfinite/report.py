"""Report on a step with non-finite numbers: samples, layers and the JSON file."""

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_lightning.atomic import write_text
from se_lightning.callbacks.checkpointing.last_checkpoint import LastCheckpoint
from se_lightning.data.samplers import OneEpoch, TrainSampler
from se_lightning.excitation.taps import eager
from se_lightning.lightning import LightningModule, Trainer

__all__ = ["append", "bad_rows", "bad_weights", "first_bad_output", "message", "sample_ids", "what"]

_KEPT = 1000  # newest records that stay in the file


def sample_ids(trainer: Trainer, epoch: int, batches: Sequence[int], rank: int) -> list[int] | None:
    """Return the training set indices of the samples in these batches of a rank.

    None if the loader is not from this package, whose order follows from seed and epoch.
    """
    order = getattr(trainer.train_dataloader, "sampler", None)
    if isinstance(order, OneEpoch):
        order, epoch = order.order, 0
    if not isinstance(order, TrainSampler):
        return None
    keys, size = order.keys(epoch, rank) % order.size, order.batch_size
    return [key for batch in batches for key in keys[batch * size : (batch + 1) * size].tolist()]


def bad_rows(batch: Any) -> list[int]:
    """Return the indices of the samples in a batch that have non-finite inputs."""
    images = next((t for t in _tensors(batch) if t.ndim > 1 and t.is_floating_point()), None)
    if images is None:
        return []
    return images.isfinite().flatten(1).all(1).logical_not().nonzero().flatten().tolist()


def bad_weights(module: nn.Module) -> list[str]:
    """Return the names of the parameters that are not finite."""
    return [name for name, p in module.named_parameters() if not bool(p.isfinite().all())]


class _Seen(Exception):  # noqa: N818  not an error
    """Ends a forward pass once a bad layer is found."""


@torch.no_grad()
def first_bad_output(
    trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
) -> str | None:
    """Run a batch again, and return the path of the first layer whose output is not finite.

    Buffers are restored afterwards. Random numbers (dropout) may differ from the first run.
    """
    if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
        return None  # would wait for the other ranks
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    found: list[str] = []
    handles = [
        layer.register_forward_hook(_looker(path, found))
        for path, layer in module.named_modules()
        if path
    ]
    takes_index = "batch_idx" in inspect.signature(module.training_step).parameters
    # Exception: a foreign training step may fail on a second call, and the report must go out.
    with (
        contextlib.suppress(_Seen, Exception),
        eager(),
        trainer.precision_plugin.train_step_context(),
    ):
        module.training_step(*((batch, batch_idx) if takes_index else (batch,)))
    for handle in handles:
        handle.remove()
    for buffer, value in before:
        buffer.copy_(value)
    return found[0] if found else None


def _looker(path: str, found: list[str]) -> Any:
    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
            found.append(path)
            raise _Seen

    return look


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a record to the file; records of later steps are from a run that was interrupted."""
    old = json.loads(path.read_text()) if path.exists() else []
    records = [each for each in old if each["step"] < record["step"]] + [record]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(each) for each in records[-_KEPT:])
    write_text(path, f"[\n{lines}\n]\n")


def what(record: dict[str, Any]) -> str:
    """Describe the non-finite numbers of a record, and where they started."""
    ranks = record["ranks"]
    bad = [each for each in ranks if not math.isfinite(float(each["loss"]))]
    where = f"step {record['step']} (epoch {record['epoch']}, {_several('batch', record)})"
    if bad:
        on = f" on rank {bad[0]['rank']}" if len(ranks) > 1 else ""
        parts = [f"The loss is {bad[0]['loss']} at {where}{on}."]
    else:
        layers = _some(record["layers"])
        parts = [f"The loss is finite, but gradients are not at {where}: {layers}."]
    for each in bad:
        if each["bad_rows"]:
            ids = each["bad_samples"] or [f"{row} of the batch" for row in each["bad_rows"]]
            parts.append(f"The images are not finite: sample {_some(ids)}.")
        elif each["output"]:
            parts.append(f"First layer whose output is not finite: {each['output']}.")
    if record["weights"]:
        parts.append(f"Weights were already not finite: {_some(record['weights'])}.")
    return " ".join(parts)


def _several(word: str, record: dict[str, Any]) -> str:
    first, last = record["batches"][0], record["batches"][-1]
    return f"{word} {first}" if first == last else f"{word}es {first} to {last}"


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def message(trainer: Trainer, record: dict[str, Any], path: Path, *, in_a_row: int) -> str:
    """Return the full error message: the problem, the path of the details, and remedies."""
    parts = [what(record)]
    if in_a_row:
        parts.append(f"{in_a_row} steps in a row were skipped.")
    parts.append(f"Details, including the samples, are in {path}.")
    good = _last_checkpoint(trainer)
    remedies = ["trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed or 32-true"]
    if not in_a_row:
        remedies.insert(0, "on_nonfinite=skip, which skips bad steps")
    if good is not None:
        where = f"resume={trainer.default_root_dir}"
        parts.append(f"The last good checkpoint is {good}; continue from it with {where}.")
    if good is not None and record["weights"] is None:
        parts.append("With trainer.log_every_n_steps=1, the report also names the layer.")
    parts.append(f"Usual remedies: {'; '.join(remedies)}; in a new run, a lower optimizer.lr.")
    return " ".join(parts)


def _last_checkpoint(trainer: Trainer) -> Path | None:
    saved: list[Any] = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            saved.insert(0, callback.path(trainer))
        saved += [getattr(callback, f"{name}_model_path", None) for name in ("last", "best")]
    return next((Path(path) for path in saved if path and Path(path).exists()), None)
