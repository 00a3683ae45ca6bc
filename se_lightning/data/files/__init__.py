"""Data sets of image files, decoded by workers and finished on the device."""
