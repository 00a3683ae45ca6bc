"""Data sets of image files: decoded by workers, finished on the device."""
