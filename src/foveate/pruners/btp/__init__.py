"""Balanced Token Pruning."""
