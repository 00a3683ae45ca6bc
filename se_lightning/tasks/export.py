"""Export of the gates of every image in a split as a table, for use in other programs."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from se_lightning.atomic import atomic_path
from se_lightning.excitation import Taps
from se_lightning.excitation.curves import select_layers
from se_lightning.excitation.recording import Recorded, record
from se_lightning.excitation.taps import per_sample, require_gates
from se_lightning.lightning import LightningDataModule
from se_lightning.models.layers.head import predicted
from se_lightning.modules import ImageClassifier
from se_lightning.tasks.splits import device_of, split_batches

__all__ = ["export"]

log = logging.getLogger(__name__)


def export(
    model: ImageClassifier,
    datamodule: LightningDataModule,
    *,
    folder: str,
    split: str = "test",
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Write ``excitations.parquet``, with one row per image.

    The columns are ``image`` (index in the split), ``label``, ``prediction``, and one per layer,
    named by its path: lists of C float32, the gates averaged over space, or null if the gate was
    not executed. Each batch is a row group. The file is written completely or not at all.

    Args:
        model: Model on its device.
        datamodule: Datamodule that has been set up.
        folder: Output folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        layers: Paths of SE modules. None selects all.

    Returns:
        ``export/images``, the number of images.

    Raises:
        ValueError: If pyarrow is not installed, or there is no such gate or split.
    """
    arrow, parquet = _arrow()
    path = Path(folder) / "excitations.parquet"
    require_gates(model.backbone)
    with Taps(model) as taps:
        chosen = select_layers(taps.layers, layers)
        types = {taps.layers[k]: arrow.list_(arrow.float32(), taps.channels[k]) for k in chosen}
        whole = dict.fromkeys(("image", "label", "prediction"), arrow.int64())
        schema = arrow.schema(list((whole | types).items()))
        images = 0
        batches = split_batches(datamodule, split, device_of(model))
        # Dictionary encoding, the default, makes files of distinct numbers 50 % larger.
        options = {"use_dictionary": False, "compression": "zstd"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path) as part,
            parquet.ParquetWriter(part, schema, **options) as writer,
        ):
            for batch in record(model, batches, taps):
                columns = _columns(arrow, schema, batch, chosen, taps, images)
                writer.write_batch(arrow.record_batch(columns, schema=schema))
                images += len(batch.labels)
    log.info("%d images, %d layers: %s", images, len(chosen), path)
    return {"export/images": float(images)}


def _arrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            'task=export needs pyarrow to write Parquet files: pip install "se_lightning[parquet]".'
        ) from error
    return pyarrow, pyarrow.parquet


def _columns(
    arrow: Any, schema: Any, batch: Recorded, chosen: Sequence[int], taps: Taps, first: int
) -> list[Any]:
    size = len(batch.labels)
    whole = [torch.arange(first, first + size), batch.labels, predicted(batch.logits)]
    columns = [arrow.array(each.cpu().numpy(), arrow.int64()) for each in whole]
    for layer in chosen:
        name, channels, calls = taps.layers[layer], taps.channels[layer], batch.gates[layer]
        if not calls:
            columns.append(arrow.nulls(size, schema.field(name).type))
            continue
        values = per_sample(calls, channels, size).float().cpu().numpy()
        flat = arrow.array(values.ravel(), arrow.float32())
        columns.append(arrow.FixedSizeListArray.from_arrays(flat, channels))
    return columns
