"""Composing a multirun before Hydra runs it."""

import pytest

from se_lightning.cli.command import Command
from se_lightning.cli.sweep.multirun import Multirun


def composed(*arguments):
    return Multirun.composed(Command.parse(arguments))


def test_multirun_options_are_refused_in_a_single_run():
    with pytest.raises(ValueError, match=r"jobs\.parallel=2 is an option of multiruns"):
        composed("jobs.parallel=2", "model.ratio=4")
    assert composed("model.ratio=4") is None


def test_a_multirun_knows_its_points_and_its_folder():
    multirun = composed("-m", "model.ratio=4,8", "seed=1,2", "trainer.max_epochs=1")
    found = [
        (point.model.ratio, point.seed, point.trainer.max_epochs) for point in multirun.points()
    ]
    assert found == [(4, 1, 1), (4, 2, 1), (8, 1, 1), (8, 2, 1)]
    assert multirun.is_basic
    assert multirun.fixed == ["trainer.max_epochs=1"]
    assert [override.get_key_element() for override in multirun.swept] == ["model.ratio", "seed"]
    # The time stamp is fixed here and not taken again by Hydra.
    assert multirun.command.value("hydra.sweep.dir").endswith(multirun.config.hydra.sweep.dir)


def test_a_multirun_that_hydra_refuses_is_left_to_hydra():
    assert composed("-m", "model=nope") is None
    assert composed("-m", "model.ratio=4,8", "--cfg", "job") is None
