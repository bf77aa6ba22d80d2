"""Policies: what is computed, reused or skipped while a model runs. They know tensors, and nothing of any model."""
