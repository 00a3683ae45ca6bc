"""Each file of conf/experiment trains for some steps on small files in its data set's format."""

from pathlib import Path

import pytest

EXPERIMENTS = {
    "fashion_mnist_quick": ("se_resnet20", "idx_root"),
    "cifar10_speedrun": ("se_resnet18", "cifar_root"),
}
FOLDER = Path(__file__).parents[2] / "conf" / "experiment"


def test_each_experiment_is_tested_and_starts_with_what_it_is():
    files = {path.stem: path for path in FOLDER.glob("*.yaml")}
    assert files.keys() == EXPERIMENTS.keys()
    for path in files.values():
        assert path.read_text().startswith("# @package _global_\n# ")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_trains(name, run_main, short, tmp_path, request, result):
    model, root = EXPERIMENTS[name]
    files = request.getfixturevalue(root)
    options = (f"data.root={files}", "data.val_size=20", "data.batch_size=16")
    steps = ("trainer.limit_train_batches=3", "lr_scheduler.warmup_epochs=0.5")
    code, error = run_main(f"+experiment={name}", *options, *short, *steps, "output_dir=run")
    assert code == 0, error
    found = result(tmp_path / "run")
    assert found["steps"] == 3
    assert found["model"] == model
    assert 0 <= found["metrics"]["test/acc1"] <= 1
