"""Callbacks that save checkpoints from which a run resumes exactly."""
