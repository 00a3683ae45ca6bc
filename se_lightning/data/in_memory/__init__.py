"""Data sets of small images that are held in memory as one tensor."""
