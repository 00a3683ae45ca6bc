"""The table of a multirun, rebuilt from what its jobs have left."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from se_lightning.atomic import write_text
from se_lightning.cli.run.result import RESULT

__all__ = ["read_results", "write_summary"]


def write_summary(sweep_dir: Path) -> None:
    """Rebuild summary.csv and summary.md from the results of all jobs that have ended."""
    rows = [_row(result) for result in read_results(sweep_dir)]
    head, tail = ["job", "status"], ["world size", "wall time, s", "error"]
    # dict, not set: in the order in which the jobs name them.
    found = dict.fromkeys(column for row in rows for column in row)
    columns = head + [column for column in found if column not in head + tail] + tail

    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(sweep_dir / "summary.csv", table.getvalue())
    write_text(sweep_dir / "summary.md", _markdown(rows, columns))


def read_results(sweep_dir: Path) -> list[dict[str, Any]]:
    """Read the results of all jobs that have ended, in their order."""
    found = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{RESULT}")]
    jobs = [result for result in found if result.get("job") is not None]
    return sorted(jobs, key=lambda result: result["job"])


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
    # Of the multirun, not of the job: they may be others when it is resumed.
    overrides = {key: value for key, value in overrides.items() if not key.startswith("jobs.")}
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
