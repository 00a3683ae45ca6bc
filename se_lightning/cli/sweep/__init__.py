"""Multiruns: jobs in separate processes, and the table of their results."""
