"""Callbacks that save checkpoints a run can resume from exactly."""
