"""A single run."""
