"""Advice for a key or an option that does not exist."""

import pytest

from se_lightning.cli.command import Command
from se_lightning.cli.hints import nearest_key


@pytest.fixture(scope="module")
def config():
    return Command().compose()


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("lr", "optimizer.lr"), ("epochs", "trainer.max_epochs"), ("optimzer.lr", "optimizer.lr"),
        ("batch_size", "data.batch_size"), ("devices", "trainer.devices"),
        ("weight_decay", "optimizer.weight_decay"), ("max_epoch", "trainer.max_epochs"),
        ("num_worker", "data.num_workers"), ("gpus", "trainer.devices"), ("modle", "model"),
        ("learning_rate", "optimizer.lr"), ("trainer.devicez", "trainer.devices"),
        ("sead", "seed"), ("callbacks.checkpont", "callbacks.checkpoint"),
        ("model.optimizer.lrr", "model.optimizer.lr"), ("model.growth_rate", None), ("xyzzy", None),
    ],
)  # fmt: skip
def test_the_nearest_key_is_looked_for_in_its_group_and_then_anywhere(config, given, near):
    assert nearest_key(given, config) == near


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("lr=0.1", "optimizer.lr"), ("epochs=3", "trainer.max_epochs"), ("+lr=3", "optimizer.lr"),
        ("optimzer.lr=1", "optimizer.lr"), ("++batch_size=8", "data.batch_size"),
        ("optimizr=adamw", "optimizer"), ("~epochs", "trainer.max_epochs"),
        ("model=se_resnet51", "model=se_resnet5"), ("data=cifar", "data=cifar1"),
        ("task=analyse", "task=analyze"),
    ],
)  # fmt: skip
def test_a_mistyped_key_or_option_is_answered_with_the_nearest(run_main, tmp_path, given, near):
    code, error = run_main(given, more=())
    assert code == 1
    assert f"Did you mean `{near}" in error
    assert error.count("se_lightning: error: ") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_key_of_the_users_own_configs_is_found_too(run_main, tmp_path):
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text(
        "_target_: torch.optim.SGD\nspeed: 1\n"
    )
    code, error = run_main("--config-dir", "conf", "optimizer=mine", "sped=2", more=())
    assert code == 1
    assert "Did you mean `optimizer.speed`?" in error
