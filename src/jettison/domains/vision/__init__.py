"""Image classifiers and their data."""
