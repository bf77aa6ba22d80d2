"""Ways to store a weight: uniform grids, value tables, and patterns of zeros."""
