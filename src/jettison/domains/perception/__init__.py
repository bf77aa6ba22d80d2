"""Perception: models that see and hear."""
