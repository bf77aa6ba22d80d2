"""Utilities that all packages use: errors, files, locks, journals, progress, sizes. No neural networks."""
