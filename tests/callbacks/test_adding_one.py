"""A new callback is one file in callbacks/ and one YAML file, and nothing else."""

import csv
import shutil
from pathlib import Path

import se_lightning

ROOT = Path(se_lightning.__file__).parent.parent

CALLBACK = '''
"""Logs each layer's mean gate."""

from pytorch_lightning import Trainer

from se_lightning.callbacks.excitation.base import ExcitationCallback
from se_lightning.callbacks.publish import send_metrics
from se_lightning.excitation import ExcitationSummary

__all__ = ["GateLogger"]


class GateLogger(ExcitationCallback):
    """Logs the mean gate of each layer after every validation.

    Args:
        prefix: First part of the metric names.
    """

    def __init__(self, prefix: str = "gate") -> None:
        self.prefix = prefix

    def on_summary(self, trainer: Trainer, summary: ExcitationSummary) -> None:
        """Log the means."""
        rows = zip(summary.layers, summary.layer_mean().tolist(), strict=True)
        send_metrics(trainer, {f"{self.prefix}/{layer}": mean for layer, mean in rows})
'''
CONFIG = """# Each layer's mean gate, for the loggers.
gate_logger:
  _target_: se_lightning.callbacks.gate_logger.GateLogger
  prefix: gate
"""


def test_a_new_callback_is_one_file_and_one_yaml(tmp_path, cli, short):
    for folder in ("se_lightning", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder)
    (tmp_path / "copy/se_lightning/callbacks/gate_logger.py").write_text(CALLBACK)
    (tmp_path / "copy/conf/callbacks/gate_logger.yaml").write_text(CONFIG)
    done = cli(
        *short,
        "callbacks=[default,gate_logger]",
        "callbacks.gate_logger.prefix=mean_gate",
        "logger=csv",
        env={"PYTHONPATH": str(tmp_path / "copy")},
    )
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    logged = [(k, float(v)) for row in rows for k, v in row.items() if k.startswith("mean_") and v]
    assert len(logged) == 9, done.stderr
    assert all(0 < mean < 1 for _, mean in logged)
    assert (metrics.parent / "excitation" / "histogram.png").exists()
    wrong = cli(
        "callbacks=gate_logger",
        "callbacks.gate_logger.prefx=x",
        env={"PYTHONPATH": str(tmp_path / "copy")},
        check=False,
    )
    assert "Did you mean `callbacks.gate_logger.prefix`?" in wrong.stderr
