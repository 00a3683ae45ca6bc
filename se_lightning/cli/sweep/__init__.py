"""Multiruns: jobs in processes of their own, and their table."""
