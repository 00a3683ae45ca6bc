import pytest
import torch
from torch.nn import functional as F

from se_lightning.models.layers.head import class_logits, count_classes, predicted


@pytest.mark.parametrize("outputs", [None, 1, 2, 3, 1000])
def test_one_logit_tells_two_classes_apart(outputs):
    assert count_classes(outputs) == {1: 2}.get(outputs, outputs)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_one_logit_has_the_probabilities_of_its_sigmoid(scale):
    z = scale * torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    found = class_logits(z).softmax(1)
    torch.testing.assert_close(found, torch.cat((torch.sigmoid(-z), torch.sigmoid(z)), 1))
    log = F.log_softmax(class_logits(z), 1)[:, 1:]
    torch.testing.assert_close(log, F.logsigmoid(z))  # no underflow
    assert predicted(z).tolist() == [0] * 5 + [1] * 4


def test_several_logits_stay():
    logits = torch.randn(4, 3)
    assert class_logits(logits) is logits
    assert torch.equal(predicted(logits), logits.argmax(1))
