"""The HTML report of `task=analyze`."""
