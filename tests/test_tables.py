import csv
import io

import pytest

from se_lightning.tables import csv_table


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|'/c calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-", "--x"]
)
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text):
    rows = list(csv.reader(io.StringIO(csv_table([text], [[text, 1]]), newline="")))
    assert rows == [[f"'{text}"], [f"'{text}", "1"]]


@pytest.mark.parametrize(
    "value", [-1, -0.5, "-0.5", "+3", "-1e-05", "-inf", "cat", "a=b", "a-b", "", 'x, "y"\nz', None]
)
def test_numbers_and_other_text_are_unchanged(value):
    (_, row) = csv.reader(io.StringIO(csv_table(["a"], [[value, 0]]), newline=""))
    assert row == ["" if value is None else str(value), "0"]
