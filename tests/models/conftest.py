import pytest
import torch
from torch import nn


def _randomize(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a random value, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.ndim > 1 else 25
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5)
        for norm in norms:
            norm.weight.abs_().add_(0.5)
            norm.running_var.abs_().add_(0.5)
    return model.eval()


def _assert_equal_outputs(model, oracle, pixels):
    x = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actual, expected = model.eval()(x), oracle(x)
    assert expected.std() > 1e-3, "the outputs are constant"
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture
def randomize():
    return _randomize


@pytest.fixture
def assert_equal_outputs():
    return _assert_equal_outputs
