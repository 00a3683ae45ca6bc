import sys

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning import NonFiniteError
from se_lightning.cli.errors import Failure, JobError, RankError, explain, is_user_error
from se_lightning.cli.run.out_of_memory import BatchTooLargeError
from se_lightning.ranks import Interrupted


def test_hydras_wrapper_exception_is_removed():
    node = OmegaConf.create({"model": {"_target_": "se_lightning.SEResNetModule", "ratio": 0}})
    with pytest.raises(InstantiationException) as caught:
        instantiate(node.model)
    assert is_user_error(caught.value)
    assert explain(caught.value).startswith("model: `ratio` (=0) must be")


@pytest.mark.parametrize(
    ("error", "user", "text"),
    [
        (ValueError("`a` (=1) must be 2."), True, "`a` (=1) must be 2."),
        (MisconfigurationException("too many GPUs"), True, "too many GPUs"),
        (FileNotFoundError("x is missing: y"), True, "x is missing: y"),
        (OSError(28, "No space left on device", "/a"), True, "No space left on device: /a"),
        (JobError("job 1 failed"), True, "job 1 failed"),
        (RuntimeError("shapes differ"), False, "RuntimeError: shapes differ"),
        (KeyError("x"), False, "KeyError: 'x'"),
        (AssertionError(), False, "AssertionError"),
        (ValueError(), True, "ValueError"),
    ],
)
def test_a_user_error_shows_its_message_and_a_bug_also_its_class(error, user, text):
    assert is_user_error(error) == user
    assert explain(error) == text


def test_a_failure_survives_being_recorded():
    failure = Failure("no memory", "out_of_memory", {"size": "data.batch_size=8"}, "Traceback")
    assert Failure.read(failure.record()) == failure
    assert Failure("x", "bug").record() == {"error": "x", "kind": "bug"}
    assert Failure.read({"error": "of an older version", "status": "failed"}).kind == "bug"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), "user_error"),
        (KeyError("x"), "bug"),
        (NonFiniteError("x"), "non_finite"),
        (BatchTooLargeError("x", [], "data.batch_size=2"), "out_of_memory"),
        (RankError("rank 1 was killed"), "rank_lost"),
        (RankError("rank 1: x", Failure("x", "non_finite")), "non_finite"),
        (Interrupted(15, "saved"), "interrupted"),
    ],
)
def test_each_failure_has_a_kind(error, kind):
    assert Failure.of(error).kind == kind


def test_only_a_bug_has_a_traceback_unless_one_is_requested(monkeypatch):
    assert Failure.of(ValueError("x")).traceback == ""
    assert "KeyError: 'x'" in Failure.of(KeyError("x")).traceback
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "ValueError: x" in Failure.of(ValueError("x")).traceback


def test_ctrl_c_is_an_interruption_also_after_lightning_has_made_it_an_exit():
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as error:
        turned = error
    for error in (KeyboardInterrupt(), turned):
        assert Failure.of(error).record() == {"error": "interrupted", "kind": "interrupted"}
    assert Failure.of(SystemExit(1)).kind == "bug"
