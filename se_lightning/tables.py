"""Tables in CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["csv_table"]


def csv_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as CSV that is safe to open in a spreadsheet.

    A spreadsheet would run a class name such as ``=HYPERLINK(...)`` as a formula. Text that begins
    like a formula gets an apostrophe in front, unless it is a number.

    Args:
        header: Names of the columns.
        rows: Rows of numbers and text; None is an empty cell.

    Example:
        >>> csv_table(["class", "change"], [["=1+1", -1]]).splitlines()
        ['class,change', "'=1+1,-1"]
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([_cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
