"""Vision: image classifiers and their data."""
