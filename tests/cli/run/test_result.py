import json
import math

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.errors import Failure
from se_lightning.cli.run import rank_failures
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.result import identity


@pytest.fixture(autouse=True)
def _job(monkeypatch):
    config = OmegaConf.create(
        {
            "job": {"num": 3, "config_name": "train"},
            "overrides": {"task": ["seed=1", "resume=x"], "hydra": ["hydra.verbose=true"]},
            "runtime": {"config_sources": []},
        }
    )
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))


def test_a_job_is_identified_by_its_number_and_overrides():
    assert identity() == {"job": 3, "overrides": ["seed=1"]}


def test_the_first_failing_rank_records_the_cause(tmp_path):
    folder = RunFolder(tmp_path)
    rank_failures.record(folder, Failure("the cause", "user_error"))
    rank_failures.record(folder, Failure("connection closed by peer", "bug"))
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "status": "failed",
        "error": "the cause",
        "kind": "user_error",
        "job": 3,
        "overrides": ["seed=1"],
    }
    folder.write_result({"status": "completed"})
    assert folder.result() == {"status": "completed"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    """NaN and Infinity are not JSON: jq, JavaScript and Go refuse them."""
    folder = RunFolder(tmp_path)
    metrics = {"val/loss": math.nan, "val/acc1": 0.5, "test/loss": -math.inf}
    details = {"values": (1, math.inf, "a")}
    folder.write_result({"metrics": metrics, "score": math.nan, "details": details})

    def refuse(constant):
        raise AssertionError(constant)

    written = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert written == {
        "metrics": {"val/loss": None, "val/acc1": 0.5, "test/loss": None},
        "score": None,
        "details": {"values": [1, None, "a"]},
    }
    assert folder.result(strict=True) == written


def test_results_of_earlier_versions_can_be_read(tmp_path):
    """They have NaN, no kind, and keys that no longer exist."""
    (tmp_path / "result.json").write_text(
        '{"status": "failed", "error": "x", "job": null, "overrides": ["a=1"], "old": 3,'
        ' "metrics": {"val/loss": NaN}, "score": Infinity, "hidden_widths": {"a": 2}}'
    )
    found = RunFolder(tmp_path).result(strict=True)
    assert math.isnan(found["metrics"]["val/loss"])
    assert found["old"] == 3
