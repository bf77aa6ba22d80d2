"""Numerical functions of tensors: range search, column updates, low-rank corrections, masks."""
