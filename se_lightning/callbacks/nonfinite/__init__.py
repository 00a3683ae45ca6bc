"""Callback that stops at or skips non-finite losses and gradients."""
