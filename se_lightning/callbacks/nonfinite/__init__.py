"""The callback that stops at, or skips, losses and gradients that are not finite."""
