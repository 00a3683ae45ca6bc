"""What a resumed run and a folder of configs may call."""

import re

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.command import Command
from se_lightning.cli.trust import _is_known, _targets, carried_trust

MINE = """
import pytorch_lightning as pl
class Quiet(pl.Callback):
    pass
def make():
    return Quiet()
"""


@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("se_lightning.ExcitationHistogram", True),
        ("se_lightning.modules.optim.cosine", True),
        ("pytorch_lightning.callbacks.EarlyStopping", True),
        ("pytorch_lightning.strategies.DDPStrategy", True),
        ("torch.optim.AdamW", True),
        ("timm.optim.Lamb", True),
        ("torch.nn.Linear", True),
        ("os.system", False),
        ("builtins.exec", False),
        ("subprocess.Popen", False),
        ("torch.hub.load", False),
        ("torch.load", False),
        ("se_lightning.cli.process.os.system", False),
        ("se_lightning.data.cores.os.system", False),
        ("se_lightning.atomic.write_text", False),
        ("pytorch_lightning.callbacks.timer.time.sleep", False),
    ],
)
def test_targets_are_parts_of_a_training(target, known):
    assert _is_known(target) == known


def interrupted(run_main, tmp_path, short, *more):
    code, error = run_main(*short, "lr_scheduler=constant", "hydra.run.dir=run", *more)
    assert code == 0, error
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run" / ".hydra" / "hydra.yaml"


def test_a_resumed_run_calls_only_parts_of_a_training(run_main, tmp_path, short):
    recorded = interrupted(run_main, tmp_path, short)
    text = recorded.read_text()
    evil = f"+callbacks.evil={{_target_: os.mkdir, path: {tmp_path}/ran}}"
    recorded.write_text(re.sub(r"( +)task:\n", rf"\1task:\n\1- '{evil}'\n", text, count=1))
    code, error = run_main("resume=run", more=())
    assert code == 1
    assert "`callbacks.evil._target_` (='os.mkdir') comes from a folder" in error
    assert not (tmp_path / "ran").exists()
    code, error = run_main("resume=run", "trust=true", more=())
    assert "returns a NoneType" in error  # it ran, since it was trusted
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_ones_own_callbacks_resume_and_functions_need_trust(run_main, tmp_path, short, monkeypatch):
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    interrupted(run_main, tmp_path, short, "+callbacks.x._target_=of_mine.Quiet")
    assert run_main("resume=run", more=())[0] == 0
    (tmp_path / "run").rename(tmp_path / "other")
    interrupted(run_main, tmp_path, short, "+callbacks.x._target_=of_mine.make")
    code, error = run_main("resume=run", more=())
    assert code == 1
    assert "pass trust=true" in error
    assert run_main("resume=run", "trust=true", more=())[0] == 0


def test_keys_that_are_numbers_are_accepted():
    schedule = {"_target_": "pytorch_lightning.callbacks.GradientAccumulationScheduler"}
    node = OmegaConf.create({"callbacks": {"x": {**schedule, "scheduling": {0: 1, 4: 2}}}})
    assert list(_targets(node)) == [("callbacks.x._target_", schedule["_target_"])]


def test_targets_in_lists_are_found():
    plugins = [None, {"_target_": "a.b", "inner": [[{"_target_": "c.d"}]]}]
    node = OmegaConf.create({"trainer": {"plugins": plugins}, "same": "${trainer}"})
    assert dict(_targets(node)) == {
        "trainer.plugins.1._target_": "a.b",
        "trainer.plugins.1.inner.0.0._target_": "c.d",
    }


def test_a_folder_of_configs_calls_only_parts_of_a_training(run_main, tmp_path, short):
    (tmp_path / "configs" / "callbacks").mkdir(parents=True)
    target = f"x:\n  _target_: os.mkdir\n  path: {tmp_path}/ran\n"
    (tmp_path / "configs" / "callbacks" / "evil.yaml").write_text(target)
    folder = ("--config-dir", str(tmp_path / "configs"), "callbacks=evil")
    code, error = run_main(*short, *folder)
    assert code == 1
    assert "pass trust=true" in error
    assert not (tmp_path / "ran").exists()
    code, error = run_main(*short, "+callbacks.x={_target_: os.mkdir, path: typed}")
    assert "returns a NoneType" in error  # what one types is trusted


@pytest.mark.parametrize(
    "override",
    [
        "hydra.job_logging.handlers.x={'()': os.system, command: id}",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.searchpath=[/elsewhere]",
        "hydra.job.env_set.LD_PRELOAD=x.so",
    ],
)
def test_settings_of_hydra_that_run_code_are_refused(override):
    with pytest.raises(ValueError, match="which could run code"):
        carried_trust(Command((), ("model.ratio=4", override)), Command())


def test_harmless_settings_of_hydra_are_accepted():
    settings = ("hydra.run.dir=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    recorded = Command((), (*settings, "hydra.verbose=true"))
    assert carried_trust(recorded, Command()) == "trust=false"
    assert carried_trust(recorded, Command((), ("trust=true",))) == "trust=true"
