"""How a weight may be stored: integer grids, and patterns of zeros."""
