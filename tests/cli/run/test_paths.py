"""Paths of a config: home directories, and the folder where the command was given."""

import json

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.run.paths import refuse_empty, settle_paths


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A command given in one folder, and run in another."""
    (tmp_path / "given").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "given" / "w.pth").touch()
    hydra = OmegaConf.create({"runtime": {"cwd": str(tmp_path / "given")}})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path / "given")
    return tmp_path / "given"


VALUES = {
    "ckpt_path": "a.ckpt",
    "data": {"root": "~/d"},
    "model": {"weights": "w.pth"},
    "task": {"folder": "~/out", "output": "out"},
}


def test_a_home_directory_is_expanded_in_every_path(given):
    cfg = OmegaConf.create(VALUES | {"home": "~/d", "data": {"root": "${home}"}})
    settle_paths(cfg)
    assert cfg.data.root == "/home/me/d"
    assert cfg.task.folder == "/home/me/out"
    assert (cfg.ckpt_path, cfg.model.weights, cfg.task.output) == ("a.ckpt", "w.pth", "out")
    assert cfg.home == "~/d"  # not a path of this package
    cfg = OmegaConf.create({"ckpt_path": ["~/a.ckpt", "b.ckpt"], "data": {"root": None}})
    settle_paths(cfg)
    assert (list(cfg.ckpt_path), cfg.data.root) == (["/home/me/a.ckpt", "b.ckpt"], None)


def test_what_is_read_is_found_where_the_command_was_given(given, monkeypatch):
    monkeypatch.chdir(given.parent / "run")
    cfg = OmegaConf.create(VALUES | {"data": {"root": "images"}})
    settle_paths(cfg)
    assert cfg.ckpt_path == f"{given}/a.ckpt"
    assert cfg.data.root == f"{given}/images"
    assert cfg.model.weights == f"{given}/w.pth"
    assert cfg.task.output == "out"  # written where the process works
    cfg = OmegaConf.create({"model": {"weights": "timm/seresnet50.a1_in1k"}})
    settle_paths(cfg)
    assert cfg.model.weights == "timm/seresnet50.a1_in1k"  # a name, and no file


def test_a_run_in_its_own_folder_reads_trains_and_resumes(run_main, image_root, tmp_path, short):
    files = ("data=image_folder", f"data.root={image_root.name}", "data.image_size=32",
             "data.batch_size=8", "data.num_workers=0", "callbacks=none",
             "lr_scheduler=constant")  # fmt: skip
    keep = "+callbacks.last_checkpoint={_target_: se_lightning.callbacks.LastCheckpoint}"
    code, error = run_main(*short, *files, keep, "hydra.job.chdir=true", "hydra.run.dir=out")
    assert code == 0, error
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "completed"
    code, error = run_main("resume=out", "trainer.max_epochs=2", more=())
    assert code == 0, error
    assert json.loads((tmp_path / "out" / "result.json").read_text())["epochs"] == 2
    assert not (tmp_path / "out" / "out").exists()


@pytest.mark.parametrize(
    "given",
    ["resume=", "ckpt_path=", "model=", "data.root=", "seed=", "+callbacks.x=", "hydra.run.dir=",
     "output_dir=''",
     "jobs.resume=", "resume=''", 'ckpt_path=""', "hydra.sweep.dir=''"],
)  # fmt: skip
def test_an_empty_value_is_refused(given):
    with pytest.raises(ValueError, match=r"has no value: is a variable of your shell unset\?"):
        refuse_empty(Command.parse([given]))
    refuse_empty(Command.parse(["logger.wandb.notes=''", "resume=null", "~callbacks", "seed=1"]))
