"""Callbacks that record and plot the gates during validation."""
