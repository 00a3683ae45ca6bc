"""Multiruns: a fresh process a job, and a table of what came out.

Lightning starts the further ranks of a job by running ``sys.argv`` again; in a multirun that
would be the whole multirun, once a rank. And what a job leaves behind in its process (ranks,
process group, W&B run) is there for the next. So each job is a command of its own.
"""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from se_lightning.errors import JobError
from se_lightning.ranks import CHILD, INHERITED
from se_lightning.results import RESULT, write_failure, write_whole

__all__ = ["run_job", "tell_summary", "write_summary"]

# Of an outer W&B run, into which no job may write.
_WANDB_RUN = ("WANDB_RUN_ID", "WANDB_RESUME")
# Hydra's overrides that are about the multirun and not about a job.
_SWEEP_ONLY = (
    "hydra.mode",
    "hydra.sweep",
    "hydra.run",
    "hydra.job.num",
    "hydra.launcher",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.output_subdir",
)

_summaries: set[Path] = set()  # of the multiruns that this process has led


def tell_summary() -> None:
    """Print the table of the multirun that this process has led, if it has."""
    for summary in _summaries:
        print(f"\n{summary.read_text()}\n{summary}")


def run_job() -> float | None:
    """Run the job that Hydra is at in a process of its own, and rebuild the multirun's table.

    Returns:
        The score that the job reports to a sweeper.

    Raises:
        JobError: if it ended with another exit code than 0.
    """
    hydra = HydraConfig.get()
    run_dir, sweep_dir = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
    code = _run(_command(run_dir), sweep_dir)
    if code:
        # Kept only where the job itself could not say it: it was killed, or never began.
        write_failure(run_dir, f"the process ended with exit code {code}")
    result = json.loads((run_dir / RESULT).read_text())
    write_summary(sweep_dir)
    if code:
        raise JobError(
            f"job {hydra.job.num} failed: {result['error']}\nAll jobs: {sweep_dir}/summary.md"
        )
    return result["score"]


def _run(command: list[str], sweep_dir: Path) -> int:
    job = subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL)
    try:
        return job.wait()
    except KeyboardInterrupt:  # Ctrl-C: the job has got it too, and says so in its result
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(timeout=30)
        finally:
            job.kill()
        write_summary(sweep_dir)
        raise


def _command(run_dir: Path) -> list[str]:
    hydra = HydraConfig.get()
    options = ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":  # --config-dir
            options += ["--config-dir", source.path]
    inherited = [
        override
        for override in hydra.overrides.hydra
        if not override.lstrip("+~").startswith(_SWEEP_ONLY)
    ]
    quoted = str(run_dir.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    return [
        sys.executable,
        "-m",
        "se_lightning",
        *options,
        *hydra.overrides.task,
        *inherited,
        f'hydra.run.dir="{quoted}"',
        f"hydra.job.num={hydra.job.num}",
        "hydra.output_subdir=null",  # .hydra is there already
    ]


def _environment() -> dict[str, str]:
    hydra = HydraConfig.get()
    environment = {k: v for k, v in os.environ.items() if k not in (*INHERITED, *_WANDB_RUN)}
    environment.setdefault("WANDB_RUN_GROUP", Path(hydra.sweep.dir).name)
    environment.setdefault("WANDB_NAME", hydra.job.override_dirname or "defaults")
    return environment | {CHILD: "1"}


def write_summary(sweep_dir: Path) -> None:
    """Rebuild summary.csv and summary.md from the results of all jobs that have ended."""
    results = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{RESULT}")]
    rows = [_row(result) for result in sorted(results, key=lambda result: result["job"])]
    head, tail = ["job", "status"], ["world size", "wall time, s", "error"]
    # dict, not set: in the order in which the jobs name them.
    found = dict.fromkeys(column for row in rows for column in row)
    columns = head + [column for column in found if column not in head + tail] + tail

    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    _summaries.add(sweep_dir / "summary.md")
    write_whole(sweep_dir / "summary.csv", table.getvalue())
    write_whole(sweep_dir / "summary.md", _markdown(rows, columns))


def _markdown(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Draw the table that one reads: what all jobs share stands above it, once."""
    shared = {
        column: rows[0][column]
        for column in columns
        if "." in column and len(rows) > 1 and len({row.get(column) for row in rows}) == 1
    }
    read = [c for c in columns if c not in shared and not c.startswith(("train/", "val/"))]
    read = [c for c in read if any(str(row.get(c, "")) for row in rows)]
    cells = [read] + [[str(row.get(c, "")).replace("|", "\\|") for c in read] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    if shared:
        lines[:0] = ["All jobs: " + " ".join(f"`{k}={v}`" for k, v in shared.items()), ""]
    return "\n".join(lines) + "\n"


def _row(result: dict[str, Any]) -> dict[str, Any]:
    """Flatten a result: a column an override, a metric, a figure."""
    overrides = dict(override.lstrip("+").partition("=")[::2] for override in result["overrides"])
    widths = dict.fromkeys(result.get("hidden_widths", {}).values())
    return {
        "job": result["job"],
        "status": result["status"],
        **overrides,
        "hidden widths": " ".join(map(str, widths)),
        "parameters": result.get("parameters", ""),
        **{name: f"{value:.5g}" for name, value in result.get("metrics", {}).items()},
        "world size": result.get("world_size", ""),
        "wall time, s": result.get("wall_time_s", ""),
        "error": " ".join(result.get("error", "").split()),
    }
