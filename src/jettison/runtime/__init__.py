"""Run a checkpoint: load it with packed weights, and generate text."""
