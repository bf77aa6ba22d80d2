"""Metrics: scores as pure functions."""
