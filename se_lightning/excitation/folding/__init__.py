"""Folding constant gates into the adjacent layers."""
