import os

import pytest
import wandb

from se_lightning.loggers import GracefulWandbLogger, finish_wandb


@pytest.fixture(autouse=True)
def _finished():
    yield
    finish_wandb(failed=True)


def test_without_an_account_it_is_offline_and_says_so_once(tmp_path, caplog):
    logger = GracefulWandbLogger(save_dir=str(tmp_path / "new"), name="mine", group="ours")
    with caplog.at_level("INFO"):
        run = logger.experiment
        assert logger.experiment is run
    assert (run.name, run.group, run.project) == ("mine", "ours", "se_lightning")
    lines = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert len(lines) == 1
    assert "offline (no account: `wandb login`)" in lines[0]
    folder = lines[0].rpartition("wandb sync ")[2]
    assert folder.startswith(str(tmp_path / "new" / "wandb" / "offline-run-"))
    assert os.path.isdir(folder)
    assert "WANDB_MODE" not in os.environ  # as Lightning's offline=True leaves


def test_wandb_mode_decides(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level("INFO"):
        run = GracefulWandbLogger(save_dir=str(tmp_path)).experiment
    assert run.disabled
    assert "W&B" not in caplog.text
    assert not (tmp_path / "wandb").exists()


def test_a_key_that_is_none_goes_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with caplog.at_level("INFO"):
        GracefulWandbLogger(save_dir=str(tmp_path)).experiment.log({"a": 1})
    assert "W&B: offline (" in caplog.text


def test_a_second_run_is_another_run(tmp_path):
    first = GracefulWandbLogger(save_dir=str(tmp_path)).experiment.id
    finish_wandb(failed=False)
    assert wandb.run is None
    assert GracefulWandbLogger(save_dir=str(tmp_path)).experiment.id != first


def test_further_ranks_start_no_run(tmp_path, monkeypatch):
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    GracefulWandbLogger(save_dir=str(tmp_path)).experiment.log({"a": 1})
    assert wandb.run is None
