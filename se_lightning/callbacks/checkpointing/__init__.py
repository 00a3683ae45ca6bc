"""Callbacks that save checkpoints and let a run resume exactly."""
