"""Augmentation, with random numbers that depend on the sample only."""
