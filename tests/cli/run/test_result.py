import json

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.run.result import write_failure, write_result


def test_the_first_failing_rank_tells_the_cause(tmp_path, monkeypatch):
    config = OmegaConf.create({"job": {"num": 3}, "overrides": {"task": ["seed=1"]}})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))
    write_failure(tmp_path, "the cause")
    write_failure(tmp_path, "connection closed by peer")
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "status": "failed",
        "error": "the cause",
        "job": 3,
        "overrides": ["seed=1"],
    }
    write_result(tmp_path, {"status": "completed"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "completed"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
