"""How a weight may be stored: uniform grids, value tables, and patterns of zeros."""
