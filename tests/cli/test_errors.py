import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning.cli.errors import JobError, explain, is_mistake


def test_hydras_wrapping_is_taken_off():
    node = OmegaConf.create({"model": {"_target_": "se_lightning.SEResNetModule", "ratio": 0}})
    with pytest.raises(InstantiationException) as told:
        instantiate(node.model)
    assert is_mistake(told.value)
    assert explain(told.value).startswith("model: `ratio` (=0) must be")


@pytest.mark.parametrize(
    ("error", "mistake", "text"),
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
def test_a_mistake_is_its_message_and_a_fault_has_its_kind(error, mistake, text):
    assert is_mistake(error) == mistake
    assert explain(error) == text
