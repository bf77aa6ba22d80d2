"""Run a checkpoint: load it, packed, and let it write."""
