"""Plots of the gates."""
