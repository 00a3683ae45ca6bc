"""Changing a network that exists: inserting, tracing and folding gates."""
