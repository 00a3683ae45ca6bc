"""Keys whose value is null can be deleted, like others."""

import pytest
from hydra.errors import ConfigCompositionException

from se_lightning.cli import main  # noqa: F401  # its import makes null keys deletable
from se_lightning.cli.command import Command


@pytest.mark.parametrize(
    "key",
    [
        "model.in_channels",
        "model.weights",
        "trainer.precision",
        "optimizer.foreach",
        "callbacks.last_checkpoint.every_minutes",  # an interpolation
        "ckpt_path",
        "model.ratio",  # not null
        "callbacks.gate_doctor",
    ],
)
def test_a_key_is_deleted(key):
    node, _, name = key.rpartition(".")
    for overrides, found in ((), True), ((f"~{key}",), False):
        config = Command((), overrides).compose()
        for part in filter(None, node.split(".")):
            config = config[part]
        assert (name in list(config)) == found


@pytest.mark.parametrize("key", ["model.nope", "nope.lr", "nope"])
def test_a_key_that_does_not_exist_is_refused(key):
    with pytest.raises(ConfigCompositionException, match=f"'{key}' does not exist"):
        Command((), (f"~{key}",)).compose()


def test_a_value_that_differs_is_refused():
    with pytest.raises(ConfigCompositionException, match="is 10 and not 3"):
        Command((), ("~trainer.max_epochs=3",)).compose()


def test_deleting_comes_in_the_order_of_the_command():
    config = Command((), ("~model.weights", "+model.weights=x")).compose()
    assert config.model.weights == "x"
