"""The table of a multirun."""

import csv
import json

import pytest

from se_lightning.cli.sweep import summary


def rows(sweep):
    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


RESULTS = [
    {
        "job": 10, "status": "completed", "overrides": ["model.ratio=8", "trainer.max_epochs=1"],
        "hidden_widths": {"a": 2, "b": 2, "c": 4}, "parameters": 7, "world_size": 1,
        "metrics": {"val/acc1": 0.5, "test/acc1": 0.123456789}, "wall_time_s": 1.5,
    },
    {
        "job": 2, "status": "failed", "overrides": ["model.ratio=0", "trainer.max_epochs=1"],
        "error": "bad\nratio | of 0",
    },
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    for result in RESULTS:
        folder = tmp_path / str(result["job"])
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
    summary.write_summary(tmp_path)
    return tmp_path


def test_the_csv_has_every_job_in_order(sweep):
    failed, completed = rows(sweep)
    assert (failed["job"], completed["job"]) == ("2", "10")
    assert failed["error"] == "bad ratio | of 0"
    assert (completed["val/acc1"], completed["test/acc1"]) == ("0.5", "0.12346")
    assert completed["hidden widths"] == "2 4"
    assert list(completed)[:2] == ["job", "status"]
    assert list(completed)[-3:] == ["world size", "wall time, s", "error"]


def test_the_markdown_table_has_only_the_columns_to_compare(sweep):
    text = (sweep / "summary.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "All jobs: `trainer.max_epochs=1`"
    assert lines[2].split("|")[1:4] == [" job ", " status    ", " model.ratio "]
    assert "val/acc1" not in text
    assert "| 12.35 % " in text
    assert "bad ratio \\| of 0" in text
    assert len({line.replace("\\|", "##").count("|") for line in lines[2:]}) == 1
    assert len({len(line) for line in lines[2:]}) == 1


def test_a_setting_that_a_spreadsheet_would_run_is_text(sweep):
    result = json.dumps(RESULTS[1]).replace("model.ratio=0", "model.name==1+1")
    (sweep / "2" / "result.json").write_text(result)
    summary.write_summary(sweep)
    assert rows(sweep)[0]["model.name"] == "'=1+1"
    assert "=1+1" in (sweep / "summary.md").read_text()


def test_a_setting_with_control_characters_stays_in_its_cell(sweep):
    result = json.dumps(RESULTS[1]).replace("model.ratio=0", "model.name=a\\nb\\u001b[31m|\\udcff")
    (sweep / "2" / "result.json").write_text(result)
    summary.write_summary(sweep)
    assert rows(sweep)[0]["model.name"] == "a\nb\\x1b[31m|\\udcff"
    assert r"| a\nb\x1b[31m\|\udcff |" in (sweep / "summary.md").read_text()


def test_a_metric_that_is_not_finite_is_nan(sweep):
    """In results of this version, which have null, and of earlier ones, which have NaN."""
    for value in ("null", "NaN"):
        result = json.dumps(RESULTS[0]).replace("0.5", value)
        (sweep / "10" / "result.json").write_text(result)
        summary.write_summary(sweep)
        assert rows(sweep)[1]["val/acc1"] == "nan"
