"""Recipes, which state how to compress a model; their presets; and the registry of methods that recipes name."""
