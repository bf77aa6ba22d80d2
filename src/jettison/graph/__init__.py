"""Find and open models on disk, read their anatomy, run them block by block. Known shapes: the same without weights."""
