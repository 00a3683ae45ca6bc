"""The command line: Hydra, run directories and processes."""
