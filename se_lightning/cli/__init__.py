"""The command line: Hydra, run folders and processes."""
