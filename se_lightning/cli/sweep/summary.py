"""The table of a multirun, rebuilt from the results of its jobs."""

from pathlib import Path
from typing import Any

from se_lightning.atomic import write_text
from se_lightning.cli.command import key_of, value_of
from se_lightning.cli.console import printable
from se_lightning.cli.run.folder import jobs_in
from se_lightning.cli.run.result import RunResult
from se_lightning.tables import csv_table

__all__ = ["SUMMARY", "TABLE", "read_results", "write_summary"]

SUMMARY = "summary.md"
TABLE = "summary.csv"


def write_summary(sweep_dir: Path) -> None:
    """Rebuild summary.csv and summary.md from the results of all jobs that have ended."""
    rows = [_row(result) for result in read_results(sweep_dir)]
    head, tail = ["job", "status"], ["world size", "wall time, s", "error"]
    # A dict and not a set, to keep the order of the jobs' columns.
    found = dict.fromkeys(column for row in rows for column in row)
    columns = head + [column for column in found if column not in head + tail] + tail

    table = csv_table(columns, ([row.get(column) for column in columns] for row in rows))
    write_text(sweep_dir / TABLE, table)
    write_text(sweep_dir / SUMMARY, _markdown(rows, columns))


def read_results(sweep_dir: Path) -> list[RunResult]:
    """Return the results of all jobs that have ended, sorted by number."""
    found = [folder.result(strict=True) for folder in jobs_in(sweep_dir)]
    jobs = [result for result in found if result.get("job") is not None]
    return sorted(jobs, key=lambda result: result["job"] or 0)


def _markdown(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Format the table for reading; settings that all jobs share are printed once, above it."""
    shared = {
        column: rows[0][column]
        for column in columns
        if "." in column and len(rows) > 1 and len({row.get(column) for row in rows}) == 1
    }
    shown = [c for c in columns if c not in shared and not c.startswith(("train/", "val/"))]
    shown = [c for c in shown if any(str(row.get(c, "")) for row in rows)]
    cells = [list(map(_cell, shown))]
    cells += [[_cell(_shown(column, row.get(column, ""))) for column in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    if shared:
        settings = " ".join(f"`{_cell(f'{key}={value}')}`" for key, value in shared.items())
        lines[:0] = [f"All jobs: {settings}", ""]
    return "\n".join(lines) + "\n"


def _shown(column: str, value: Any) -> Any:
    """Return an accuracy in percent; only files for programs have fractions."""
    if value and column.endswith(("/acc1", "/acc5")):
        return f"{100 * float(value):.2f} %"
    return value


def _cell(value: Any) -> str:
    return printable(str(value), keep="").replace("|", "\\|")


def _row(result: RunResult) -> dict[str, Any]:
    """Flatten a result: one column per override, metric and figure."""
    overrides = {key_of(o): printable(value_of(o)) for o in result.get("overrides", [])}
    # These belong to the multirun, and may change when it is resumed.
    overrides = {key: value for key, value in overrides.items() if not key.startswith("jobs.")}
    widths = dict.fromkeys(result.get("hidden_widths", {}).values())
    return {
        "job": result["job"],
        "status": result.get("status", "failed"),
        **overrides,
        "hidden widths": " ".join(map(str, widths)),
        "parameters": result.get("parameters", ""),
        **{name: _number(value) for name, value in result.get("metrics", {}).items()},
        "world size": result.get("world_size", ""),
        "wall time, s": result.get("wall_time_s", ""),
        "error": printable(" ".join(result.get("error", "").split())),
    }


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.5g}"
