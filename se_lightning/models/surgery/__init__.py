"""Changing an existing network: tracing it, inserting and folding gates."""
