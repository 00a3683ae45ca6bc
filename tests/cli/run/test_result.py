import json

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
