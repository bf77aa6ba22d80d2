"""Models on disk: find, open, read their anatomy, walk them block by block. Known shapes: the same without weights."""
