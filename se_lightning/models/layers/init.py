"""Initial weights of networks."""

from collections.abc import Callable

from torch import nn

__all__ = ["INITS"]

# Standard deviation of a standard normal distribution that is cut off at -2 and 2.
_CUT_OFF = 0.87962566103423978


def _fan_out(network: nn.Module) -> None:
    """Initialize the convolutions by their fan-out: He et al., arXiv:1502.01852."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # A depthwise convolution has the fan-out of one channel, which is its fan-in. The
            # fan-out of a spatial gate's single output would saturate the gate.
            depthwise = module.groups == module.in_channels > 1
            small = depthwise or module.out_channels == 1
            nn.init.kaiming_normal_(module.weight, mode="fan_in" if small else "fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _he_normal(network: nn.Module) -> None:
    """Initialize convolutions and dense layers like Keras's he_normal."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            std = (2 / fan_in) ** 0.5 / _CUT_OFF
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


INITS: dict[str, Callable[[nn.Module], None]] = {"fan_out": _fan_out, "he_normal": _he_normal}
