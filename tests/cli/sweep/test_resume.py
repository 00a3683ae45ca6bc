"""What a multirun that was cut has left to do."""

import json
import os
import sys

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.sweep import resume as unfinished
from se_lightning.cli.sweep.pool import Job

NUMBER = "${hydra.job.num}"  # not to be resolved: there is no number yet


def test_the_command_line_of_a_multirun_is_rebuilt_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun here").mkdir()
    begun = {
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
            "cwd": str(tmp_path / "begun here"),
            "config_sources": [
                {"provider": "main", "path": "a"},
                {"provider": "command-line", "path": "/b"},
            ],
        },
    }
    (tmp_path / "s").mkdir()
    OmegaConf.save(OmegaConf.create({"hydra": begun}), tmp_path / "s" / "multirun.yaml")
    argv = same = ["x", "jobs.resume=s", "jobs.parallel=2"]
    assert unfinished.restore(argv)
    assert same is argv
    assert argv[1:] == [
        "-m", "--config-name", "mine", "--config-dir", "/b", f"hydra.sweep.subdir={NUMBER}",
        "model.ratio=4,8", "jobs.allow_equal=true", "jobs.parallel=2",
        f'hydra.sweep.dir="{tmp_path}/s"',
    ]  # fmt: skip
    assert os.getcwd() == str(tmp_path / "begun here")
    assert not unfinished.restore(argv)


@pytest.mark.parametrize(
    ("status", "checkpoint", "left"),
    [
        ("completed", True, None),
        ("failed", True, "resume"),
        (None, True, "resume"),
        ("failed", False, "anew"),
        (None, False, "anew"),
    ],
)
def test_what_is_left_of_a_job(tmp_path, status, checkpoint, left):
    if status:
        (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ("last.ckpt" if checkpoint else ".torn")).touch()
    job = Job(7, tmp_path, ["anew"])
    rest = unfinished.left_of(job)
    if left is None:
        assert rest is None
        return
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoints").exists() == checkpoint
    resumed = [sys.executable, "-m", "se_lightning", f'resume="{tmp_path}"', "hydra.job.num=7"]
    assert rest.command == (resumed if left == "resume" else ["anew"])
