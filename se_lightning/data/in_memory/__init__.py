"""Data sets of small images, each held in memory as one tensor."""
