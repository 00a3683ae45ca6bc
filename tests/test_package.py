"""The installed wheel, the bare checkout, and other Hydra apps in the same environment."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LITTER = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "outputs", "build")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "checkout", ignore=LITTER)


@pytest.fixture(scope="module")
def installed(checkout, tmp_path_factory):
    """Build the sdist, build the wheel from it, and install the wheel into an empty folder."""
    target = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target / "dist")]
    subprocess.run([*build, str(checkout)], check=True, capture_output=True)
    (wheel,) = (target / "dist").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(target), str(wheel)], check=True, capture_output=True)
    return target


def test_the_wheel_contains_every_package_and_every_config(installed):
    """A missing one would work in an editable install, which reads the checkout."""

    def files(root, pattern):
        return {path.relative_to(root) for path in root.rglob(pattern) if path.is_file()}

    package = installed / "se_lightning"
    assert files(ROOT / "conf", "*.yaml") == files(package / "conf", "*.yaml")
    code = files(ROOT / "se_lightning", "*.py")
    assert code | {Path("conf/__init__.py")} == files(package, "*.py")
    for folder in {path.parent for path in code}:
        assert (ROOT / "se_lightning" / folder / "__init__.py").exists()
    for data in ("py.typed", "data/files/sources/imagenet_wnids.txt"):
        assert (package / data).exists()


def test_the_wheels_console_script_runs_from_elsewhere(installed, cli, short, result, tmp_path):
    script = [sys.executable, str(installed / "bin" / "se-lightning")]
    done = cli(*short, command=script, env={"PYTHONPATH": str(installed)})
    assert "test accuracy" in done.stdout
    assert result(tmp_path)["status"] == "completed"
    where = "import se_lightning.conf as conf; print(conf.__file__)"
    found = cli(command=[sys.executable, "-c", where], env={"PYTHONPATH": str(installed)})
    assert found.stdout.startswith(str(installed))


SLOW = [pytest.param(inner, marks=pytest.mark.slow) for inner in ("conf", "docs")]


@pytest.mark.parametrize("inner", ["se_lightning", *SLOW])
def test_a_folder_named_like_the_package_does_not_hide_it(cli, tmp_path, inner):
    """A clone in the current folder is such a folder (pypa/setuptools#3592)."""
    (tmp_path / "se_lightning" / inner).mkdir(parents=True)
    (tmp_path / "script.py").write_text("from se_lightning import SEResNetModule as M; print(M)")
    for command in (["script.py"], ["-c", (tmp_path / "script.py").read_text()]):
        done = cli(command=[sys.executable, *command])
        assert done.stdout.strip() == "<class 'se_lightning.modules.families.SEResNetModule'>"
    assert "seed: 0" in cli("--cfg", "job", command=[sys.executable, "-m", "se_lightning"]).stdout


APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg):
    print(cfg.model.depth, cfg.model._target_)

if __name__ == "__main__":
    main()
"""


def test_another_hydra_app_can_compose_the_models(installed, cli, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(
        "defaults:\n- model: se_resnet50\n- _self_\n"
        "hydra:\n  searchpath: [pkg://se_lightning.conf]\n"
    )
    run = [sys.executable, "app.py", "--config-dir", "conf"]
    done = cli(command=run, env={"PYTHONPATH": str(installed)})
    assert done.stdout.strip() == "50 se_lightning.SEResNetModule"
    done = cli("model=se_resnext50_32x4d", command=run, env={"PYTHONPATH": str(installed)})
    assert done.stdout.strip() == "50 se_lightning.SEResNeXtModule"


# Runs app.py with se_lightning made unimportable.
HIDDEN = """
import runpy, sys
sys.modules["se_lightning"] = None
sys.argv[0] = "app.py"
runpy.run_path("app.py", run_name="__main__")
"""


def test_an_unrelated_hydra_app_is_unaffected(installed, cli, tmp_path):
    (tmp_path / "app.py").write_text(APP.replace('config_name="app"', "config_name=None"))
    installed_help = cli(
        "--help", command=[sys.executable, "app.py"], env={"PYTHONPATH": str(installed)}
    )
    hidden_help = cli("--help", command=[sys.executable, "-c", HIDDEN])
    assert installed_help.stdout == hidden_help.stdout
    assert "se_resnet" not in installed_help.stdout


BARE = """
import pytorch_lightning, torch
from torch.utils.data import DataLoader, TensorDataset
from se_lightning import SEResNetModule
from se_lightning.models import se_resnet50, create_model, list_models, SqueezeExcitation
data = TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8))
trainer = pytorch_lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
trainer.fit(SEResNetModule(depth=50, ratio=16, num_classes=10), DataLoader(data, batch_size=4))
import sys
assert not {"hydra", "omegaconf", "wandb"} & set(sys.modules)
print("trained", trainer.global_step)
"""


def test_the_modules_train_in_a_bare_trainer(installed, cli):
    done = cli(command=[sys.executable, "-c", BARE], env={"PYTHONPATH": str(installed)})
    assert "trained 2" in done.stdout


# Runs the package of the current folder as if no copy were installed.
NOT_INSTALLED = """
import os, runpy, sys
sys.path = [each for each in sys.path if not (each and os.path.exists(each + "/se_lightning"))]
runpy.run_module("se_lightning", run_name="__main__")
"""


def test_a_bare_checkout_runs_with_its_own_configs(checkout, cli):
    """The configs beside the package are used, whether or not a copy is installed."""
    primary = checkout / "conf" / "train.yaml"
    primary.write_text(primary.read_text().replace("seed: 0\n", "seed: 77\n"))
    try:
        assert "seed: 77" in cli("--cfg", "job", cwd=checkout).stdout
    finally:
        primary.write_text((ROOT / "conf" / "train.yaml").read_text())
    done = cli("--cfg", "job", command=[sys.executable, "-c", NOT_INSTALLED], cwd=checkout)
    assert "_target_: se_lightning.SEResNetModule" in done.stdout


def test_missing_configs_are_reported_with_a_remedy(checkout, cli, tmp_path):
    shutil.copytree(checkout / "se_lightning", tmp_path / "se_lightning")
    done = cli(command=[sys.executable, "-c", NOT_INSTALLED], check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "se_lightning: error: The configs (se_lightning.conf) are missing from this installation; "
        "run `pip install -e .` in a checkout, or reinstall the package."
    )


def test_public_names_are_lazy_and_complete():
    import se_lightning

    packages = [importlib.import_module(f"se_lightning.{p}") for p in se_lightning._PACKAGES]
    assert se_lightning.__all__ == sorted(name for p in packages for name in p.__all__)
    for name in se_lightning.__all__:
        assert getattr(se_lightning, name).__name__ == name
        assert name in dir(se_lightning)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = se_lightning.nope
    lazy = "import sys, se_lightning; from se_lightning import ranks, atomic, arguments; "
    lazy += "assert 'torch' not in sys.modules; from se_lightning import *; EMA, SESimpleModule"
    subprocess.run([sys.executable, "-c", lazy], check=True, env=dict(os.environ))
