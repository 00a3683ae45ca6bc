"""Augmentation with random numbers that depend only on seed, epoch and sample."""
