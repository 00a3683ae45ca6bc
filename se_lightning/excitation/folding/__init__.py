"""Removal of constant gates by folding them into adjacent layers."""
