"""Resuming an interrupted multirun."""

import json
import os
import sys

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.sweep.pool import Job
from se_lightning.cli.sweep.resume import remaining, resumed

NUMBER = "${hydra.job.num}"  # must stay unresolved: there is no job number yet


def test_the_command_of_a_multirun_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "started here").mkdir()
    recorded = {
        "overrides": {
            "task": ["model.ratio=4,8", "jobs.parallel=4", "jobs.allow_equal=true"],
            "hydra": [
                "hydra.mode=MULTIRUN",
                "hydra.sweep.dir=x",
                "hydra.sweep.subdir=${hydra.job.num}",
            ],
        },
        "job": {"config_name": "mine"},
        "runtime": {
            "cwd": str(tmp_path / "started here"),
            "config_sources": [
                {"provider": "main", "path": "a"},
                {"provider": "command-line", "path": "/b"},
            ],
        },
    }
    (tmp_path / "s").mkdir()
    OmegaConf.save(OmegaConf.create({"hydra": recorded}), tmp_path / "s" / "multirun.yaml")
    command = resumed(Command.parse(["jobs.resume=s", "jobs.parallel=2"]))
    assert command.argv() == [
        "-m", "--config-name", "mine", "--config-dir", "/b",
        "model.ratio=4,8", "jobs.allow_equal=true", f"hydra.sweep.subdir={NUMBER}",
        "jobs.parallel=2", f'hydra.sweep.dir="{tmp_path}/s"',
    ]  # fmt: skip
    assert os.getcwd() == str(tmp_path / "started here")
    assert resumed(command) is command


@pytest.mark.parametrize(
    ("status", "checkpoint", "left"),
    [
        ("completed", True, None),
        ("failed", True, "resume"),
        (None, True, "resume"),
        ("failed", False, "whole"),
        (None, False, "whole"),
    ],
)
def test_a_job_is_skipped_resumed_or_repeated(tmp_path, status, checkpoint, left):
    if status:
        (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ("last.ckpt" if checkpoint else ".torn")).touch()
    job = Job(7, RunFolder(tmp_path), ["whole"])
    rest = remaining(job)
    if left is None:
        assert rest is None
        return
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoints").exists() == checkpoint
    resumed = [sys.executable, "-m", "se_lightning", f'resume="{tmp_path}"', "hydra.job.num=7"]
    assert rest.command == (resumed if left == "resume" else ["whole"])
